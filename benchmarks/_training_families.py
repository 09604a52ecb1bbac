"""Families of eight tasks that are trained together."""

from benchmarks._training_runs import Family

__all__ = ["GUIDE", "REPAIR", "REWRITING", "SHORT"]

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
SHORT = Family(REPAIR.name, REPAIR.tasks[:2])
