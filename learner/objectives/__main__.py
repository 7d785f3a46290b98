"""`python -m learner.objectives` prints the table of docs/objectives.md."""

from learner.objectives.registry import markdown

if __name__ == "__main__":
    print(markdown())
