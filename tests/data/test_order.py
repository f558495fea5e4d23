"""The order of batches: weights, groups of similar length, and shares of processes."""

from collections import Counter
from itertools import chain, pairwise

import datasets
import numpy as np
from tiny import tiny_batches

from sam_lab.data.streams import shares

NUM_RECORDS = 23


def prompts(global_batches) -> list[list[str]]:
    return [[record["prompt"] for record in batch] for batch in global_batches]


def test_the_order_does_not_depend_on_the_split(processor, folder):
    splits = [(4, 1, 1), (2, 2, 1), (2, 1, 2), (1, 2, 2), (1, 4, 1)]
    orders = []
    for size, processes, accumulation in splits:
        everything = []
        for process in range(processes):
            batches = tiny_batches(
                folder,
                processor,
                size,
                num_processes=processes,
                process_index=process,
                accumulation=accumulation,
                group_buffer=3,
            )
            assert (batches.order.global_batch, batches.order.steps_per_epoch, len(batches)) == (
                4,
                6,
                6 * accumulation,
            )
            steps = list(batches.order.global_batches(1))
            parts = [batches.order.micro_batches(step) for step in steps]
            assert all(len(part) == accumulation and all(len(rows) <= size for rows in part) for part in parts)
            everything.append(parts)
        orders.append(prompts(steps))
        for index, step in enumerate(orders[-1]):
            dealt = [record["prompt"] for parts in everything for rows in parts[index] for record in rows]
            assert sorted(dealt) == sorted(step)
    assert all(order == orders[0] for order in orders)
    assert [len(step) for step in orders[0]] == [4, 4, 4, 4, 4, 3]
    assert len(set(chain(*orders[0]))) == NUM_RECORDS
    assert orders[0] != prompts(batches.order.global_batches(0))


def test_rows_of_a_similar_length_meet(processor):
    texts = ["x" * int(length) for length in np.random.default_rng(0).integers(1, 400, size=1024)]
    table = datasets.Dataset.from_list([{"audio": None, "prompt": "", "answer": text} for text in texts])

    def padding(**options):
        batches = tiny_batches(table, processor, 8, accumulation=2, num_processes=2, **options)
        parts = [part for step in batches.order.global_batches(0) for part in batches.order.micro_batches(step)]
        lengths = [[len(record["answer"]) for record in part] for part in parts]
        return sum(max(part) * len(part) - sum(part) for part in lengths) / sum(map(sum, lengths))

    assert padding(group_buffer=16) < 0.2 < padding(group_buffer=1) < 0.45
    batches = tiny_batches(table, processor, 8, num_processes=4, group_buffer=32)
    means = [np.mean([len(record["answer"]) for record in step]) for step in batches.order.global_batches(0)]
    assert len(means) == 32 and abs(np.corrcoef(means, range(32))[0, 1]) < 0.6  # whole global batches are shuffled


def test_processes_work_on_rows_of_the_same_length(processor, records):
    two = [
        tiny_batches(
            datasets.Dataset.from_list(records), processor, 4, num_processes=2, process_index=index, accumulation=2
        )
        for index in range(2)
    ]
    for step in two[0].order.global_batches(0):
        for parts in zip(*(batches.order.micro_batches(step) for batches in two)):
            zeroth, first = ([two[0].order.length(record) for record in part] for part in parts)
            assert all(a <= b for a, b in zip(zeroth, first))
            assert all(b <= a for b, a in zip(first, zeroth[1:]))


def test_the_order_by_length_has_noise(processor):
    table = datasets.Dataset.from_list([{"audio": None, "prompt": "", "answer": "x" * n} for n in range(200, 456)])
    epochs = []
    for epoch in range(2):
        steps = list(tiny_batches(table, processor, 16, group_buffer=16).order.global_batches(epoch))
        lengths = sorted([len(record["answer"]) for record in step] for step in steps)
        assert all(step == sorted(step) for step in lengths)
        ahead = max(max(one) / min(two) for one, two in pairwise(sorted(lengths, key=np.mean)))
        assert 1 < ahead < 1.5  # records of neighbouring batches are mixed, and no others
        epochs.append(lengths)
    assert epochs[0] != epochs[1]  # other records meet


def test_weights_are_kept_exactly(processor, records, clips):
    small, large = datasets.Dataset.from_list(records[:5]), datasets.Dataset.from_list(records[5:])
    batches = tiny_batches([(small, 1.0), (large, 1)], processor, 4, num_rows=10)
    epochs = [Counter(chain(*prompts(batches.order.global_batches(epoch)))) for epoch in range(4)]
    of_small = {record["prompt"] for record in records[:5]}
    for epoch in epochs:
        assert sum(epoch.values()) == 10
        assert {prompt: count for prompt, count in epoch.items() if prompt in of_small} == dict.fromkeys(of_small, 1)
    # five of the eighteen an epoch: three epochs go on where the one before stopped, and the fourth begins again
    assert len(set().union(*epochs[:3]) - of_small) == 15
    assert len(set().union(*epochs) - of_small) == 18
    assert shares([1, 1, 1], 10) == [4, 3, 3]
    assert tiny_batches([(small, 3), (large, 1)], processor, 4).order.num_rows == NUM_RECORDS
