"""Data sets of ratings and of images: found on disk or fetched, checked line by line or image by image, read."""

from .catalogue import DATA_SETS as DATA_SETS
from .catalogue import DataSet as DataSet
from .errors import DataError as DataError
from .errors import MissingDataError as MissingDataError
from .loading import load_ratings as load_ratings
from .ratings import Ratings as Ratings
