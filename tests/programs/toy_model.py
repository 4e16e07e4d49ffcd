"""A model as a user adds it: one new file in kimagenet/models/."""

from kimagenet.models import Reported
from kimagenet.recipe import Recipe

RECIPES = {"toy": Recipe(model="toy", image_size=32, batch_size=20, epochs=2, epsilon=1e-7, initial_lr=1e-2)}
REPORTED = {"toy": Reported(None, "none: a toy")}


def build(num_classes=1000, image_size=32, dropout_rate=0.0):
    from kimagenet.models._layers import cbr, classifier, image_input

    inputs = image_input(image_size)
    return classifier(inputs, cbr(inputs, 8, 3, 2, name="conv"), num_classes, dropout_rate, "toy")
