"""Training and losses: job files in, model directories out, in processes of their own.

``jobs`` and ``launch`` belong to the orchestrator and import no torch; ``sft``, ``score``,
``masks`` and ``fetch_model`` run in the training environment and are imported by nobody else.
"""
