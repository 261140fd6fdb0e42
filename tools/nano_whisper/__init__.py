"""Rebuild the nano Whisper: a very small speech model for tests, trained on espeak-ng speech."""
