"""A dataset that keeps what it reads from alive."""

from typing import Any

import tensorflow as tf


class OwnedDataset(tf.data.Dataset):
    """The same elements as another dataset. It, its iterators and what is made of it hold `owner`, a Python object."""

    def __init__(self, dataset: tf.data.Dataset, owner: Any) -> None:
        self.owner = owner
        self._dataset = dataset
        super().__init__(dataset._variant_tensor)

    def _inputs(self) -> list[tf.data.Dataset]:
        return [self._dataset]

    @property
    def element_spec(self) -> Any:
        """The types of an element, as the other dataset has them."""
        return self._dataset.element_spec
