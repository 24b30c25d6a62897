"""The paper's experiments: what is trained on what, measured how, and put into which table."""
