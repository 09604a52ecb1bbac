"""One file, one question: `python -m benchmarks.NAME [--full] [--data DIR]`; `python -m benchmarks` runs all."""
