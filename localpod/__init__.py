"""A RunPod endpoint on this machine: the job API, the worker protocol, worker processes."""
