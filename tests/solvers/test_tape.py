from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adjoint_meta.solvers.tape import Tape

ROWS, SIZE = 3, 2


def written(generator: torch.Generator, accepted: list[list[bool]], keep: str, stages: bool = False):
    """A tape of steps of which each time only some rows' were accepted, and the same in one Python list a row."""
    tape = Tape(torch.zeros(ROWS, SIZE), keep)
    expected: list[list[tuple]] = [[] for _ in range(ROWS)]
    for accept in accepted:
        rows = torch.tensor(accept).nonzero().squeeze(1)
        if len(rows) == 0:
            continue
        n = len(rows)
        t, h = torch.randn(n, generator=generator), torch.randn(n, generator=generator)
        counts = torch.randint(1, 5, (n,), generator=generator) if stages else None
        states = [torch.randn(n, SIZE, generator=generator) for _ in range(4 if counts is None else int(counts.max()))]
        tape.record(rows, t, h, counts, states)
        for k, row in enumerate(rows.tolist()):
            own = 4 if counts is None else int(counts[k])
            expected[row].append((t[k], h[k], own, [state[k] for state in states[:own]]))
    return tape, expected


patterns = st.lists(st.lists(st.booleans(), min_size=ROWS, max_size=ROWS), min_size=1, max_size=60)


@given(accepted=patterns, keep=st.sampled_from(["stages", "steps", "nothing"]), stages=st.booleans())
def test_a_tape_is_a_list_a_row(accepted, keep, stages):
    tape, expected = written(torch.Generator().manual_seed(0), accepted, keep, stages)
    assert tape.count.tolist() == [len(steps) for steps in expected]
    assert tape.steps == max(len(steps) for steps in expected)
    for index in range(tape.steps):
        having = [row for row in range(ROWS) if len(expected[row]) > index]
        piece = tape.piece(index)
        assert (piece.rows is None) == (len(having) == ROWS)
        assert piece.rows is None or piece.rows.tolist() == having
        took = [expected[row][index] for row in having]
        assert torch.equal(piece.t, torch.stack([t for t, *_ in took])[:, None])
        assert torch.equal(piece.h, torch.stack([h for _, h, *_ in took])[:, None])
        assert piece.states == max(own for _, _, own, _ in took)
        assert (piece.stages is None) == (not stages)
        assert not stages or piece.stages.tolist() == [own for _, _, own, _ in took]
        if keep == "nothing":
            continue
        kept = tape.states(index)
        assert len(kept) == (piece.states if keep == "stages" else 1)
        for k, (_, _, own, states) in enumerate(took):
            for j in range(own if keep == "stages" else 1):
                assert torch.equal(kept[j][k], states[j])
        # What lies past a row's own states is not looked at, but a product with it must not make a NaN of zero.
        assert all(torch.isfinite(state).all() for state in kept)


def test_the_number_of_steps_is_that_of_the_moment():
    tape = Tape(torch.zeros(2, 1), "steps")
    assert tape.steps == 0
    for n in range(1, 40):
        tape.record(torch.tensor([1]), torch.ones(1), torch.ones(1), None, [torch.full((1, 1), float(n))])
        assert tape.steps == n and tape.count.tolist() == [0, n]
    assert [float(tape.states(i)[0]) for i in range(39)] == list(range(1, 40))


@pytest.mark.parametrize(("keep", "most"), [("stages", 4), ("steps", 1), ("nothing", 0)])
def test_no_more_states_lie_in_the_block_than_twice_those_to_keep(keep, most, generator):
    tape, _ = written(generator, [[True] * ROWS] * 100, keep)
    length = 0 if most == 0 else len(tape._block)
    assert 100 * most <= length <= 2 * 100 * most
    assert tape._block.shape[1:] == (ROWS, SIZE)


def test_rows_that_step_rarely_waste_no_place(generator):
    # A block by attempts would hold two hundred states.
    tape, _ = written(generator, [[i % 2 == 0, i % 2 == 1, i % 100 == 0] for i in range(200)], "steps")
    assert tape.steps == 100 and len(tape._block) == 128


def test_rows_with_few_stages_take_little_place():
    # Turn by turn one of two rows takes eight stages, the other one two: ten places for both in two steps.
    tape, y = Tape(torch.zeros(2, 1), "stages"), torch.zeros(2, 1)
    for n in range(100):
        stages = torch.tensor([8, 2] if n % 2 else [2, 8])
        tape.record(torch.arange(2), torch.ones(2), torch.ones(2), stages, [y] * 8)
    assert 500 <= len(tape._block) <= 512


def test_recorded_states_are_copies():
    tape, state = Tape(torch.zeros(1, 2), "stages"), torch.ones(1, 2)
    tape.record(torch.tensor([0]), torch.ones(1), torch.ones(1), None, [state])
    state.zero_()
    assert torch.equal(tape.states(0)[0], torch.ones(1, 2))


def test_float32_stays_float32():
    y = torch.zeros(2, 1, dtype=torch.float32)
    tape = Tape(y, "stages")
    for _ in range(20):
        tape.record(torch.arange(2), y[:, 0] + 0.1, y[:, 0] + 0.2, None, [y, y])
    piece = tape.piece(19)
    assert {x.dtype for x in (piece.t, piece.h, *tape.states(19))} == {torch.float32}
