"""What `benchmarks.training` runs: which tasks, under which methods, how often."""

from dataclasses import dataclass, replace

from adapterhub.evaluation import BASELINE, REFERENCE
from adapterhub.training.weighting import WEIGHTINGS
from benchmarks._training_pair import RATES
from benchmarks._training_runs import KEEPS, OWN, PAIR, Family, Job

GUIDE = Family(
    "guide",
    (
        "language/grammar-correction", "language/sentiment", "language/ner", "language/translation-de-en",
        "knowledge/web-questions", "knowledge/world-knowledge", "reasoning/math", "reasoning/spatial-reasoning",
    ),
)  # fmt: skip
REWRITING = Family(
    "rewriting",
    (
        "language/grammar-correction", "language/grammar-minimal-pairs", "language/disfluency-repair",
        "language/simplification", "sni/language/task111-asset-sentence-simplification",
        "sni/language/task1704-ljspeech-textmodification", "sni/language/task1364-hans-answer-generation",
        "sni/language/task674-google-wellformed-query-sentence-generation",
    ),
)  # fmt: skip
EXTRACTION = Family(
    "extraction",
    (
        "sni/language/task1452-location-entity-extraction-btc-corpus",
        "sni/language/task1453-person-entity-extraction-btc-corpus",
        "sni/language/task1479-organization-entity-extraction-btc-corpus",
        "sni/language/task1481-gene-extraction-bc2gm-dataset", "sni/knowledge/task1411-dart-subject-identification",
        "sni/knowledge/task1413-dart-object-identification", "sni/knowledge/task1518-limit-answer-generation",
        "sni/language/task891-gap-coreference-resolution",
    ),
)  # fmt: skip
WORDS = Family(
    "words",
    (
        "language/antonyms", "language/singular-to-plural", "language/spell-out", "language/number-to-words",
        "sni/language/task1582-bless-hypernym-generation", "sni/knowledge/task471-haspart-answer-generation",
        "reasoning/larger-animal", "reasoning/arithmetic",
    ),
)  # fmt: skip
SEQUENCE = Family("sequence", WORDS.tasks[:5])
STATIC = ("static",)  # is the sum, unless weights are given
OPTIMISERS = ("adaptive_momentum", "muon")  # also tried on the related tasks, beside AdamW


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Args:
        families: Tasks that are trained together.
        seeds: Of the families' runs and the pair's.
        few: Of everything else.
        examples: Training rows a task.
        curve: Further numbers of them.
        weightings: On the related tasks and on the pair.
        steps: Steps a task.
        test_rows: Test rows a task at most.
    """

    families: tuple[Family, ...]
    seeds: tuple[int, ...]
    few: tuple[int, ...]
    examples: int
    curve: tuple[int, ...]
    weightings: tuple[str, ...]
    steps: int
    test_rows: int

    def jobs(self) -> list[Job]:
        """The runs, those first that the tables need most."""
        pair, related = Family(PAIR, ()), self.families[-1]
        both, methods = (BASELINE, REFERENCE), [name for name in self.weightings if name != REFERENCE]
        return [
            *(self._job("together", family, m, seed) for family in self.families for seed in self.seeds for m in both),
            *(
                replace(self._job("together", family, REFERENCE, seed), whole=True)
                for family in self.families
                for seed in self.seeds
            ),
            *(self._job("sequence", SEQUENCE, m, seed) for m in (OWN, *KEEPS) for seed in self.few),
            *(
                self._job("pair", pair, m, seed, optimiser=o)
                for o in RATES
                for m in self.weightings
                for seed in self.seeds
            ),
            *(self._job("together", related, m, seed) for m in methods for seed in self.few),
            *(self._job("together", related, REFERENCE, seed, optimiser=o) for o in OPTIMISERS for seed in self.few),
            *(self._job("together", related, m, seed, size) for size in self.curve for m in both for seed in self.few),
        ]

    def _job(self, kind: str, family: Family, method: str, seed: int, examples: int | None = None,
             optimiser: str = "adamw") -> Job:  # fmt: skip
        size = self.examples if examples is None else examples
        return Job(kind, family, method, seed, size, self.steps, self.test_rows, optimiser)


SHORT = Plan((replace(WORDS, tasks=WORDS.tasks[:2]),), (0,), (), 32, (), ("sum", "upgrad"), 20, 20)
FULL = Plan(
    (GUIDE, REWRITING, EXTRACTION, WORDS), (0, 1, 2, 3, 4), (0, 1, 2), 100, (25, 400),
    tuple(name for name in WEIGHTINGS if name not in STATIC), 300, 200,
)  # fmt: skip
