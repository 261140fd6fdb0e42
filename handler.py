"""Run the worker: `python handler.py --test_input '{"input": {...}}'`."""

from handler.worker import main

if __name__ == "__main__":
    main()
