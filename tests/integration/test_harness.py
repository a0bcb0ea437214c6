from solti_store import Subprocess, TaskSpec, TaskStore


def test_each_test_has_a_migrated_database_of_its_own(database_url: str) -> None:
    with TaskStore.open(database_url) as store:
        assert len(store.list()) == 0
        store.create("one", TaskSpec.builder("s", Subprocess.command("true"), 1000).build())
        assert [task.id for task in store.list()] == ["one"]
