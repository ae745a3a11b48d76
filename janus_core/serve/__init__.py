"""A server that speaks OpenAI's API: images, edits and chat, with waiting requests of one setting batched.

app.py has the routes, images.py and chat.py what they read and answer, batcher.py the queue in front of each model, and
work.py what a batch runs. Only app.py and metrics.py import the web framework (requirements-serve.txt).
"""
