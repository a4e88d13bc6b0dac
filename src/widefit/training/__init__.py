"""The engine: a loop, a damped step, and the models that it steps."""
