"""A short inner solve, few tasks and a small network: settings with which a meta-step takes some milliseconds."""

REGRESSION = ("task.train_tasks=6", "task.test_tasks=3", "task.shots=5", "task.queries=5", "task.test_queries=6")
TINY = ("model.width=4", "tasks_per_step=2", "test.adam_epochs=0")
SINE = (*TINY, *REGRESSION)
