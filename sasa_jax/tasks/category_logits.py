"""Which logit of a detector stands for which class of the data."""

from collections.abc import Sequence

import numpy as np

from sasa_jax.data import Category


class CategoryLogits:
    """The data counts classes from 0 without gaps; a network's logits may have gaps.

    Args:
        categories: of the data, in class order.
        category_ids: 0 gives each class a logit. A number gives one to each category id from 1 to
            it, as the paper's network has 90 for COCO, of which ten are never used.

    Attributes:
        number: of logits.
        of_class: int32 [classes], the logit of a class.
        classes: int32 [number], the class of a logit, -1 if none uses it.
        ids: int [number], the category id of a logit, -1 if none uses it.
        names: of the category of a logit, "" if none uses it.

    Raises:
        ValueError: a category's id is larger than `category_ids`.
    """

    def __init__(self, categories: Sequence[Category], category_ids: int):
        ids = np.array([category.id for category in categories])
        if category_ids and category_ids < ids.max():
            raise ValueError(
                f"category_ids is {category_ids}, and the data has category {ids.max()}: give at "
                "least that number, or 0 for a logit for each class of the data"
            )
        self.number = category_ids or len(categories)
        self.of_class = ids - 1 if category_ids else np.arange(self.number)
        self.of_class = self.of_class.astype(np.int32)
        self.classes = np.full(self.number, -1, np.int32)
        self.classes[self.of_class] = np.arange(len(categories))
        self.ids = np.append(ids, -1)[self.classes]  # -1 picks the last
        names = [category.name or str(category.id) for category in categories]
        self.names = tuple([*names, ""][place] for place in self.classes)
