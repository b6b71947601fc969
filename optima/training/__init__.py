"""Training and losses: job files in, model directories out, in processes of their own.

``jobs``, ``launch`` and ``fetch_model`` import no torch; ``sft``, ``dpo``, ``session``, ``policy``
and ``score`` run in the training environment and are imported by nobody else.
"""
