"""Measures of the worker against bare faster-whisper and a bare RunPod handler."""
