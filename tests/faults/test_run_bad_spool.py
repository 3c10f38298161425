"""The running agent with an unreadable spool: it logs the error, continues, and reads the spool once it can."""

from tests.support.machine import Machine


def test_an_unreadable_spool_is_logged_and_the_agent_continues(tmp_path):
    machine = Machine(tmp_path, agent_rescan_seconds=1)
    machine.write(commits=1, entities=1)
    spool, aside = machine.state / "spool", machine.state / "aside"
    with machine.run() as agent:
        agent.logged("sync_succeeded")
        spool.rename(aside)
        spool.write_text("a file")
        (line, *_) = agent.logged("loop_interrupted", loop="spool")
        assert "cannot be used: Not a directory" in line["error"]
        machine.write(commits=2)
        agent.logged("sync_succeeded", 2)
        spool.unlink()
        aside.rename(spool)
        machine.write(commits=3)
        assert machine.sync()["success"]
        assert "manual" in {line["reason"] for line in agent.logged("sync_requested", reason="manual")}
