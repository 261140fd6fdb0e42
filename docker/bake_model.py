"""Put a Whisper model into a Hugging Face cache folder: `python bake_model.py NAME FOLDER`.

An empty NAME bakes nothing.
"""

import shutil
import sys
from pathlib import Path

from faster_whisper import download_model


def main() -> None:
    """Download NAME, a faster-whisper name or a repository, into FOLDER (made in any case)."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    if not name:
        print("MODEL is empty: no model in the image, RunPod's cached model is used")
        return
    print("baked", download_model(name, cache_dir=str(folder)))
    shutil.rmtree(folder / ".locks", ignore_errors=True)  # of use to the download only


if __name__ == "__main__":
    main()
