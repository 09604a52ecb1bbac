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
REPAIR = Family(  # sentences with one error each; of each of four phenomena the two paradigms with most rows
    "repair",
    tuple(
        f"language/grammar-minimal-pairs?paradigm={paradigm}"
        for paradigm in (
            "determiner_noun_agreement_irregular_1", "determiner_noun_agreement_with_adj_2",
            "irregular_past_participle_adjectives", "irregular_past_participle_verbs",
            "irregular_plural_subject_verb_agreement_2", "distractor_agreement_relational_noun",
            "anaphor_gender_agreement", "anaphor_number_agreement",
        )
    ),
)  # fmt: skip
SEQUENCE = Family("sequence", REPAIR.tasks[:5])
STATIC = ("static",)  # is the sum, unless weights are given
OPTIMISERS = ("adaptive_momentum", "muon")  # also tried on the related tasks, beside AdamW


@dataclass(frozen=True)
class Plan:
    """How much is run.

    Args:
        families: Tasks that are trained together; the first one also has everything else done to it.
        seeds: Of the runs.
        examples: Training rows a task.
        curve: Further numbers of them.
        weightings: On the first family and on the pair.
        steps: Steps a task.
        brief: Steps a task where many methods are compared, and where tasks are learned one after another.
        test_rows: Test rows a task at most.
    """

    families: tuple[Family, ...]
    seeds: tuple[int, ...]
    examples: int
    curve: tuple[int, ...]
    weightings: tuple[str, ...]
    steps: int
    brief: int
    test_rows: int

    def jobs(self) -> list[Job]:
        """The runs, those first that the tables need most."""
        first, both = self.families[0], (BASELINE, REFERENCE)
        methods = (BASELINE, *self.weightings)
        found = [self._job("together", family, m) for family in self.families for m in both]
        found += [replace(self._job("together", first, REFERENCE), whole=True)]
        found += [self._job("sequence", SEQUENCE, m, steps=self.brief) for m in (OWN, *KEEPS)]
        found += [self._job("pair", Family(PAIR, ()), m, optimiser=o) for o in RATES for m in self.weightings]
        found += [self._job("together", first, m, steps=self.brief) for m in methods]
        found += [self._job("together", first, REFERENCE, steps=self.brief, optimiser=o) for o in OPTIMISERS]
        found += [self._job("together", first, m, examples=size) for size in self.curve for m in both]
        return [replace(job, seed=seed) for job in dict.fromkeys(found) for seed in self.seeds]

    def _job(self, kind: str, family: Family, method: str, *, examples: int | None = None, steps: int | None = None,
             optimiser: str = "adamw") -> Job:  # fmt: skip
        size, length = examples or self.examples, steps or self.steps
        return Job(kind, family, method, 0, size, length, self.test_rows, optimiser)


SHORT = Plan((replace(REPAIR, tasks=REPAIR.tasks[:2]),), (0,), 32, (), ("sum", "upgrad"), 20, 20, 20)
FULL = Plan(
    (REPAIR, REWRITING, GUIDE, EXTRACTION), (0, 1, 2), 100, (25, 50),
    tuple(name for name in WEIGHTINGS if name not in STATIC), 300, 100, 200,
)  # fmt: skip
