"""Other names of owners: remembered both ways, and only so many."""

from longtide_server.users.names import Names


def test_a_name_leads_to_its_owner_and_back():
    names = Names(10)
    names.remember("session:s", "user:ann")
    names.remember("user:anna", "user:ann")
    assert names.owner("session:s") == "user:ann"
    assert names.of("user:ann") == {"session:s", "user:anna"}
    assert names.owner("user:bob") == "user:bob"
    assert not names.of("user:bob")


def test_a_name_that_is_forgotten_is_its_own_again():
    names = Names(10)
    names.remember("session:s", "user:ann")
    names.forget("session:s")
    names.forget("session:s")
    assert names.owner("session:s") == "session:s"
    assert not names.of("user:ann")


def test_a_name_may_come_to_another_owner():
    names = Names(10)
    names.remember("session:s", "user:ann")
    names.remember("session:s", "user:bob")
    assert (names.owner("session:s"), set(names.of("user:ann"))) == ("user:bob", set())


def test_the_oldest_names_go():
    names = Names(2)
    for number in range(3):
        names.remember(f"session:{number}", "user:ann")
    assert names.owner("session:0") == "session:0"
    assert names.of("user:ann") == {"session:1", "session:2"}
