"""One loop, one updater, one evaluation. Knows the contract, never a method or a corpus."""
