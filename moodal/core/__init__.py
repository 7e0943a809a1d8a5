"""The vocabulary of the project: batches, specs, the method contract, configuration. Imports nothing of ours."""
