import torch

from lissome.nn.call import call
from lissome.nn.depth.complexity import fit_complexity
from lissome.nn.depth.confidence import NEVER
from lissome.nn.depth.exits import with_exits
from lissome.nn.depth.store import as_exits_model, save_exits
from lissome.nn.load import as_model, load_model
from tests.nn.depth.test_exits import bert, texts


def test_complexity_chooses_the_path_before_any_block_runs(tmp_path):
    module, inputs, more = bert(), texts(8), texts(40, seed=5)
    some = [ids[kept.bool()].tolist() for ids, kept in zip(more["input_ids"], more["attention_mask"], strict=True)]
    complexity = fit_complexity(some, [f"w{at}" for at in range(60)])
    exits = with_exits(module, [1, 2], inputs, rule="complexity", complexity=complexity).eval()
    exits.trained.fill_(True)
    with torch.no_grad():
        simple = 1 - complexity(inputs["input_ids"], inputs["attention_mask"])
        first, second = simple.sort(descending=True).values[[1, 4]].tolist()
        logits = call(exits.leave_at([first, second]), inputs)
        every = exits.all_logits(inputs)
    expected = torch.where(simple >= first, 0, torch.where(simple >= second, 1, 2))
    assert exits.taken.tolist() == expected.tolist() and len(set(expected.tolist())) == 3
    torch.testing.assert_close(logits, torch.stack(every)[expected, torch.arange(8)], rtol=1e-4, atol=1e-5)
    save_exits(as_exits_model(exits, as_model(module)), tmp_path / "model")
    again = load_model(str(tmp_path / "model")).module
    with torch.no_grad():
        assert torch.equal(call(again, inputs), logits)
    exits.leave_at([NEVER, 0.0])
    with torch.no_grad():
        call(exits, inputs)
    assert exits.taken.tolist() == [1] * 8
