"""Draws the curves of runs FOLDER/{fp32,bf16}-SEED into FOLDER/curves.svg and prints how far they lie apart.

Both precisions see the same examples with the same seed, so the distance between two runs of one seed is that of the arithmetic;
the distance between two seeds is what a run varies by anyway.
"""

import json
import pathlib
import statistics
import sys

WINDOW = 25
WIDTH, HEIGHT, MARGIN = 640, 360, 40
COLOURS = {"fp32": "#1f4e9c", "bf16": "#d9730d"}


def losses(run):
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def smooth(curve):
    """Means of whole windows of steps."""
    return [statistics.mean(curve[end - WINDOW : end]) for end in range(WINDOW, len(curve) + 1, WINDOW)]


def draw(curves, path):
    top = max(max(curve) for curve in curves.values())
    count = max(len(curve) for curve in curves.values())

    def point(index, value):
        x = MARGIN + (WIDTH - 2 * MARGIN) * (index + 1) / count
        return f"{x:.1f},{HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * value / top:.1f}"

    lines = [
        f'<polyline fill="none" stroke="{COLOURS[precision]}" stroke-dasharray="{"" if seed == 1 else 3 * seed}" points="'
        + " ".join(point(index, value) for index, value in enumerate(curve))
        + '"/>'
        for (precision, seed), curve in curves.items()
    ]
    texts = [f'<text x="{MARGIN}" y="{MARGIN - 16}">loss, 0 to {top:.2f}; {count * WINDOW} steps, means of {WINDOW}</text>']
    texts += [
        f'<text x="{WIDTH - 90}" y="{MARGIN + 18 * row}" fill="{colour}">{precision}</text>'
        for row, (precision, colour) in enumerate(COLOURS.items())
    ]
    box = f'<rect x="{MARGIN}" y="{MARGIN}" width="{WIDTH - 2 * MARGIN}" height="{HEIGHT - 2 * MARGIN}" fill="none" stroke="#999"/>'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="13">'
    path.write_text("\n".join([head, box, *lines, *texts, "</svg>\n"]))


def main(folder):
    runs = {(run.name.split("-")[0], int(run.name.split("-")[1])): run for run in sorted(folder.glob("*-[0-9]"))}
    curves = {key: smooth(losses(run)) for key, run in runs.items()}
    draw(curves, folder / "curves.svg")
    seeds = sorted({seed for _, seed in curves})
    print("| steps | fp32 | bf16 | largest difference with one seed | standard deviation over seeds |")
    print("|---|---|---|---|---|")
    for index in range(3, len(curves["fp32", seeds[0]]), 4):
        values = {name: [curves[name, seed][index] for seed in seeds] for name in COLOURS}
        apart = max(abs(a - b) for a, b in zip(*values.values()))
        end = (index + 1) * WINDOW
        means = " | ".join(f"{statistics.mean(values[name]):.4f}" for name in COLOURS)
        print(f"| {end - WINDOW + 1}-{end} | {means} | {apart:.4f} | {statistics.stdev(values['fp32']):.4f} |")


main(pathlib.Path(sys.argv[1]))
