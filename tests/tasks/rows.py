"""A row of every benchmark in its released form, made up."""

from typing import Any

HUB_ROW: dict[str, Any] = {
    "id": "1",
    "question": "Who made the lamp of Bob?",
    "answer": "Ann",
    "type": "compositional",
    "supporting_facts": {"title": ["Bob", "Lamp"], "sent_id": [0, 1]},
    "context": {
        "title": ["Lamp", "Cup", "Bob"],
        "sentences": [["A lamp.", "Ann made it."], ["A cup."], ["Bob has a lamp."]],
    },
    "evidences": [["Bob", "has", "lamp"]],
}
ROWS: dict[str, dict[str, Any]] = {
    "hotpot_qa": HUB_ROW,
    "mwh_qa": HUB_ROW,
    "trivia_qa": {
        "question": "q",
        "answer": {"value": "Ann", "aliases": ["A."]},
        "search_results": {"description": ["Ann did."], "title": ["t"], "search_context": ["x"]},
        "entity_pages": {"wiki_context": ["Ann is."], "title": ["Ann"]},
    },
    "cbt": {
        "sentences": ["Ann went .", "Bob came ."],
        "question": "XXXXX left .",
        "options": ["Ann", "Bob"],
        "answer": "Ann",
    },
    "math": {"problem": "p", "solution": "So $\\boxed{3}$.", "level": "1", "type": "x"},
    "gsm8k": {"question": "q", "answer": "One.\n#### 1"},
    "arc": {
        "question": "q",
        "choices": {"text": ["x", "y"], "label": ["A", "B"]},
        "answerKey": "B",
    },
    "mmlu": {"question": "q", "choices": ["x", "y"], "answer": 1, "subject": ""},
}
