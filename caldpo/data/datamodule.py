"""The data of a run: loaded, checked, split and tokenised before any model is, then served in batches."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pytorch_lightning import LightningDataModule
from pytorch_lightning.utilities import rank_zero_only
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from caldpo.config.bounds import Fraction, NonNegativeInt, PositiveInt
from caldpo.config.signature import validated
from caldpo.data.collate import PairBatches
from caldpo.data.load import LoadReport, Rejection, load_pairs, write_rejections
from caldpo.data.loader import PairLoader
from caldpo.data.pair import Message, PreferencePair
from caldpo.data.preview import print_preview
from caldpo.data.report import DataReport, SplitReport, print_report
from caldpo.data.rows import PairSource
from caldpo.data.sampler import StepBatchSampler
from caldpo.data.split import shared_prompts, split_by_prompt
from caldpo.data.template import read_template, require_template
from caldpo.data.tokenize import tokenize_pairs
from caldpo.data.tokens import TokenizedPairs
from caldpo.errors import CaldpoError
