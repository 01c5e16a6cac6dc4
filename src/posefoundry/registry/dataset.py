"""The training data as an MLflow dataset: a name, a folder under DVC and the hash DVC knows it by."""

from typing import Any, Self

from mlflow.data.dataset_source import DatasetSource
from mlflow.data.meta_dataset import MetaDataset

# MLflow's limit; a DVC folder hash has exactly as many: 32 digits and `.dir`.
MAX_DIGEST_LENGTH = 36


class DvcSource(DatasetSource):
    """A path in the project whose content DVC keeps; with git and the hash it can be had again by `dvc checkout`."""

    def __init__(self, path: str, dvc_hash: str | None, git_commit: str | None) -> None:
        self.path = path
        self.dvc_hash = dvc_hash
        self.git_commit = git_commit

    @staticmethod
    def _get_source_type() -> str:
        return "dvc"

    def load(self) -> str:
        """Returns the folder's path in the project."""
        return self.path

    @staticmethod
    def _can_resolve(raw_source: Any) -> bool:
        return False

    @classmethod
    def _resolve(cls, raw_source: Any) -> Self:
        raise NotImplementedError("A DVC source is made by its constructor; MLflow never guesses one from a path.")

    def to_dict(self) -> dict[str, str | None]:
        """Returns the source as JSON fit for MLflow."""
        return {"path": self.path, "dvc_hash": self.dvc_hash, "git_commit": self.git_commit}

    @classmethod
    def from_dict(cls, source_dict: dict[Any, Any]) -> Self:
        """Reads what `to_dict` wrote."""
        return cls(source_dict["path"], source_dict["dvc_hash"], source_dict["git_commit"])


def dvc_dataset(path: str, dvc_hash: str | None, git_commit: str | None) -> MetaDataset:
    """Builds the dataset, named by its path; without a DVC hash MLflow digests the description instead."""
    digest = dvc_hash[:MAX_DIGEST_LENGTH] if dvc_hash else None
    return MetaDataset(DvcSource(path, dvc_hash, git_commit), name=path, digest=digest)
