"""A hyperparameter search over scikit-learn's handwritten digits, fanned out over containers.

Run it with `evoke run examples/digits_search.py`, or `make demo` from a fresh checkout. It is an ordinary
Modal program: nothing in it knows about Evoke.
"""

import itertools
import time
from pathlib import Path

import modal

app = modal.App("digits-search")
image = modal.Image.debian_slim().pip_install("scikit-learn==1.7.2", "matplotlib==3.10.7")

with image.imports():
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import cross_val_score
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

Settings = dict[str, float | int | str]


def candidates() -> list[Settings]:
    """Every combination that is tried: support vectors, nearest neighbours, forests."""
    grid: list[Settings] = [
        {"model": "svc", "C": c, "gamma": gamma}
        for c, gamma in itertools.product((0.1, 1, 10, 100), (0.001, 0.01, 0.1))
    ]
    grid += [{"model": "knn", "k": k} for k in (1, 3, 5, 9, 15)]
    grid += [{"model": "forest", "trees": trees, "depth": depth} for trees in (50, 200) for depth in (6, 12, 24)]
    return grid


@app.function(image=image)
def evaluate(settings: Settings) -> tuple[Settings, float, float, float]:
    """Five-fold cross-validated accuracy of one candidate, its spread, and the seconds it took."""
    started = time.monotonic()
    digits = load_digits()
    match settings["model"]:
        case "svc":
            model = make_pipeline(StandardScaler(), SVC(C=settings["C"], gamma=settings["gamma"]))
        case "knn":
            model = make_pipeline(StandardScaler(), KNeighborsClassifier(n_neighbors=int(settings["k"])))
        case _:
            model = RandomForestClassifier(
                n_estimators=int(settings["trees"]), max_depth=int(settings["depth"]), random_state=0
            )
    scores = cross_val_score(model, digits.data, digits.target, cv=5)
    return settings, float(scores.mean()), float(scores.std()), time.monotonic() - started


@app.function(image=image)
def plot(results: list[tuple[str, float, float]]) -> bytes:
    """A bar chart of all candidates, best on top, as a PNG."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = [label for label, _, _ in results][::-1]
    means = np.array([mean for _, mean, _ in results])[::-1]
    spread = np.array([std for _, _, std in results])[::-1]
    figure, axes = plt.subplots(figsize=(8, 0.32 * len(labels) + 1))
    axes.barh(labels, means, xerr=spread, color="#3b82f6", ecolor="#94a3b8")
    axes.set_xlim(max(0.0, means.min() - 0.1), 1.0)
    axes.set_xlabel("cross-validated accuracy")
    axes.set_title("Handwritten digits: hyperparameter search")
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def describe(settings: Settings) -> str:
    rest = ", ".join(f"{key}={value}" for key, value in settings.items() if key != "model")
    return f"{settings['model']}({rest})"


@app.local_entrypoint()
def main(output: str = "digits_search.png") -> None:
    grid = candidates()
    started = time.monotonic()
    results = sorted(evaluate.map(grid), key=lambda result: -result[1])
    searched = time.monotonic()

    print(f"\n{'model':<28} {'accuracy':>9} {'+/-':>7} {'seconds':>8}")
    for settings, mean, std, seconds in results:
        print(f"{describe(settings):<28} {mean:>9.4f} {std:>7.4f} {seconds:>8.2f}")
    best, accuracy, _, _ = results[0]
    print(f"\nbest: {describe(best)} with {accuracy:.2%}")

    Path(output).write_bytes(plot.remote([(describe(s), mean, std) for s, mean, std, _ in results]))
    plotted = time.monotonic()
    work = sum(seconds for *_, seconds in results)
    print(f"search: {searched - started:.1f} s for {len(grid)} candidates ({work:.1f} s of work in containers)")
    print(f"plot:   {plotted - searched:.1f} s, written to {output}")
