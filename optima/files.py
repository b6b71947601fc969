"""The files of a run's stages, by their names.

problems/{train,test}.jsonl             Problem
<label>/generate/conversations.jsonl    Conversation    (evaluations: evaluate/<label>/talk)
<label>/score/losses.jsonl              TurnLosses
<label>/rank/rewards.jsonl              RewardParts
<label>/select/selected.jsonl           RewardParts of what is trained on
<label>/select/rows.jsonl               TrainingRow, or of <label>/pairs PreferenceRow
<label>/search/trees.jsonl              DialogueTree
<label>/pairs/pairs.jsonl               PreferencePair
<label>/train/model/                    weights, configuration, tokenizer
"""

CONVERSATIONS = "conversations.jsonl"
LOSSES = "losses.jsonl"
REWARDS = "rewards.jsonl"
SELECTED = "selected.jsonl"
SCRIPTS = "scripts.jsonl"
ROWS = "rows.jsonl"
EVAL_ROWS = "eval_rows.jsonl"
TREES = "trees.jsonl"
ROUNDS = "rounds.jsonl"
PAIRS = "pairs.jsonl"
GROUPS = "groups.jsonl"
