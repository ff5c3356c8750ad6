"""A small subject: a tanh network on a few tasks, so that a solve takes milliseconds."""

import pytest
from problems import mlp, regression

from adjoint_meta.experiments.models import HalfMSELoss
from adjoint_meta.experiments.studies.subject import Subject


@pytest.fixture
def model(generator):
    return mlp(generator)


@pytest.fixture
def tasks(generator, model):
    return regression(generator)


@pytest.fixture
def subject(model, tasks):
    return Subject(model, HalfMSELoss(), tasks)
