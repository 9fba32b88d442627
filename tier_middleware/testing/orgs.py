"""What is known of an org besides its plans, and that it can be forgotten."""

from __future__ import annotations

from datetime import timedelta

from ..clock import milliseconds_of
from ..errors import InvalidRequest, OrgNotFound
from ..ops import Committed, DeleteOrg, Describe, LookUp, LookUpPaymentMethods, LookUpPhases, OrgRecord
from ..orginfo import MAX_METADATA, NO_INFO, OrgInfo
from .bench import ACME, CALLS, MAILS, SEATS, START, Suite, raised, together

__all__ = ["Deleting", "Orgs"]


class Orgs(Suite):
    """Contact data and metadata."""

    def test_an_update_makes_the_org_known_and_subscribes_it_to_nothing(self) -> None:
        bench = self.bench()
        raised(OrgNotFound, bench.described)
        bench.update()
        assert bench.described().info == NO_INFO
        assert (bench.usages(), bench.phases()) == ({}, ())
        assert bench.refusal().code == "feature_not_found"

    def test_all_that_is_given_is_known(self) -> None:
        bench = self.bench()
        info = OrgInfo("a@example.com", "Acme", "Makes all", "555", {"k": "v"}, "pm_1", "pm_2")
        bench.update(**{name: getattr(info, name) for name in OrgInfo.__slots__})
        assert bench.described().info == info

    def test_payment_methods_are_asked_of_orgs_that_are_known(self) -> None:
        bench = self.bench()
        raised(OrgNotFound, bench.do, LookUpPaymentMethods(ACME))
        bench.update(payment_method="pm_1")
        assert bench.do(LookUpPaymentMethods(ACME)) == ()  # nobody takes payments

    def test_an_empty_text_changes_nothing(self) -> None:
        bench = self.bench()
        bench.update(email="a@example.com", name="Acme", default_payment_method="pm_1")
        bench.update(email="", name="Acme Ltd", phone="555")
        expected = OrgInfo(email="a@example.com", name="Acme Ltd", phone="555", default_payment_method="pm_1")
        assert bench.described().info == expected
        bench.update()
        assert bench.described().info == expected

    def test_metadata_is_merged_and_an_empty_text_deletes_its_key(self) -> None:
        bench = self.bench()
        bench.update(metadata={"k": "v", "n": "1"})
        bench.update(metadata={"k": "", "m": "2", "never": ""})
        assert bench.described().info.metadata == {"n": "1", "m": "2"}
        bench.update(name="Acme")
        assert bench.described().info.metadata == {"n": "1", "m": "2"}

    def test_more_metadata_than_an_org_may_have_is_refused_and_changes_nothing(self) -> None:
        bench = self.bench()
        half = {f"a{n}": "x" for n in range(MAX_METADATA // 2)}
        bench.update(metadata=half | {"b": "x"})
        before = bench.everything(ACME, "org:new")
        too_much = {f"c{n}": "x" for n in range(MAX_METADATA // 2)}
        error = raised(InvalidRequest, lambda: bench.update(name="never", metadata=too_much))
        assert (error.code, error.path) == ("invalid_metadata", "info.metadata")
        raised(InvalidRequest, lambda: bench.update("org:new", metadata=half | too_much | {"b": "x"}))
        assert bench.everything(ACME, "org:new") == before
        bench.update(metadata=too_much | {"b": ""})
        assert len(bench.described().info.metadata) == MAX_METADATA

    def test_strange_texts_come_back_as_they_were(self) -> None:
        bench = self.bench()
        texts = ["'; DROP TABLE orgs; --", '"quoted"', "ünïcödé \u2028 \U0001f600", "a\nb\tc\\d", "x" * 1024]
        for text in texts:
            bench.update(name=text, metadata={text: text})
            assert bench.described().info.name == text
        assert bench.described().info.metadata == {text: text for text in texts}

    def test_orgs_are_told_apart(self) -> None:
        bench = self.bench()
        bench.update(name="Acme")
        bench.update("org:acme2", name="Other")
        assert (bench.described().info.name, bench.described("org:acme2").info.name) == ("Acme", "Other")

    def test_info_and_subscription_leave_each_other_alone(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use(n=2)
        hold = bench.hold()
        bench.pass_(minutes=1)
        bench.update(name="Acme")
        bench.refusal()
        bench.commit(hold)
        assert bench.usage() == (3, 0)
        bench.subscribe(ACME, "plan:pro@1")
        bench.cancel()
        assert bench.described().info == OrgInfo(name="Acme")

    def test_an_org_is_as_old_as_its_first_update_and_its_periods_as_its_subscription(self) -> None:
        bench = self.bench()
        bench.update(name="Acme")
        bench.pass_(days=3)
        bench.subscribe(ACME, "plan:weekly@1")
        bench.update(name="Acme Ltd")
        assert bench.described().created_ms == milliseconds_of(START, "start")
        assert bench.resets_at() == START + timedelta(days=10)

    def test_info_survives_a_restart(self) -> None:
        bench = self.bench()
        bench.update(email="a@example.com", metadata={"k": "v"})
        before = bench.described()
        bench.restart()
        assert bench.described() == before
        bench.update(metadata={"l": "w"})
        assert bench.described().info == OrgInfo(email="a@example.com", metadata={"k": "v", "l": "w"})

    def test_a_deleted_orgs_info_is_forgotten(self) -> None:
        bench = self.bench("plan:free@1")
        bench.update(email="a@example.com", metadata={"k": "v"})
        bench.do(DeleteOrg(ACME))
        raised(OrgNotFound, bench.described)
        bench.pass_(days=1)
        bench.update(name="New")
        assert bench.described() == OrgRecord(bench.now_ms(), OrgInfo(name="New"))

    def test_updates_by_many_threads_are_all_there(self) -> None:
        bench = self.bench()
        together(16, lambda index: bench.update(metadata={f"k{index}": str(index)}))
        assert bench.described().info.metadata == {f"k{index}": str(index) for index in range(16)}


class Deleting(Suite):
    """Orgs that are forgotten."""

    def test_a_deleted_org_is_unknown(self) -> None:
        bench = self.bench("plan:free@1")
        bench.use()
        bench.do(DeleteOrg(ACME))
        for question in (LookUp(ACME, bench.now_ms()), LookUpPhases(ACME, bench.now_ms()), Describe(ACME)):
            raised(OrgNotFound, bench.do, question)
        raised(OrgNotFound, bench.do, DeleteOrg(ACME))
        assert bench.refusal().code == "org_not_found"

    def test_a_new_org_of_the_same_name_starts_empty(self) -> None:
        bench = self.bench("plan:free@1", "plan:team@1")
        bench.use(n=2)
        bench.hold(n=1)
        bench.use(SEATS, 4)
        bench.do(DeleteOrg(ACME))
        bench.subscribe(ACME, "plan:free@1", "plan:team@1")
        assert (bench.usage(), bench.usage(SEATS)) == ((0, 0), (0, 0))
        bench.hold(n=3)

    def test_its_open_holds_are_settled(self) -> None:
        bench = self.bench("plan:free@1")
        calls, mails = bench.hold(CALLS, 2), bench.hold(MAILS)
        bench.do(DeleteOrg(ACME))
        assert bench.commit(calls) == Committed()
        bench.subscribe(ACME, "plan:free@1")
        other = bench.hold(CALLS)
        assert bench.commit(calls, 5) == Committed()
        bench.release(mails)
        assert (bench.usage(CALLS), bench.usage(MAILS)) == ((0, 1), (0, 0))
        bench.commit(other)

    def test_other_orgs_stay(self) -> None:
        bench = self.bench("plan:free@1")
        bench.subscribe("org:acme2", "plan:free@1")
        bench.use(n=2, org="org:acme2")
        hold = bench.hold(org="org:acme2")
        bench.do(DeleteOrg(ACME))
        bench.commit(hold)
        assert bench.usage(org="org:acme2") == (3, 0)
