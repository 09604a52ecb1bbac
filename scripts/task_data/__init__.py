"""Training, validation and test rows of the bundled tasks: a builder for each."""

from . import knowledge, language, reasoning
from ._split import Row, Splits

__all__ = ["BUILDERS", "Row", "Splits"]

BUILDERS = {
    "knowledge/question-answering": knowledge.question_answering,
    "knowledge/world-knowledge": knowledge.world_knowledge,
    "language/grammar": language.grammar,
    "language/named-entities": language.named_entities,
    "language/sentiment": language.sentiment,
    "language/translation-en-de": language.translation,
    "reasoning/logic": reasoning.logic,
    "reasoning/math": reasoning.math,
    "reasoning/spatial": reasoning.spatial,
}
