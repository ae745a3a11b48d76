"""The recipes of models that were fine-tuned from Janus-Pro: their prompts, their rows and what they write first.

- edit: Janus-4o changes an image as an instruction says (arXiv 2506.18095).
- think: ReasonGen-R1, T2I-R1 and GoT-R1 write a text before they generate.
- reflect: Janus-Pro-R1 checks its own image and generates again (arXiv 2506.01480).

Each module follows the authors' generation code. All of them make a GenerationPrompt, which the token sampler reads.
"""
