from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(scope="session")
def parity_folder() -> Path:
    folder = SHARED / "parity"
    if not folder.is_dir():
        pytest.skip("needs ../shared/parity, reference tensors of the published families")
    return folder
