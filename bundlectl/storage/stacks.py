"""CloudFormation stacks: what a template would change, and the change itself, told as it goes."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from bundlectl.model.errors import BackendUnavailable, UsageError
from bundlectl.storage.aws import DEADLINE_SECONDS, READ_SECONDS, Patience, Refused, Unanswered, open_client, refusal

Reply = TypeVar("Reply")
Action = Literal["add", "modify", "replace", "remove"]

STACK_SECONDS = 1800.0
"""The longest that one stack is waited for."""
_RESOURCE = re.compile(r"^  (\w+):\n    Type: (AWS::\S+)\n(?:    Condition: (\w+)\n)?", re.MULTILINE)
_UNMADE = ("REVIEW_IN_PROGRESS", "DELETE_COMPLETE")


@dataclass(frozen=True)
class Change:
    """What becomes of one resource."""

    action: Action
    resource: str
    """Its name in the template."""
    type: str


@dataclass(frozen=True)
class ChangeSet:
    """What a template would change in a stack; empty where it already is as it is to be."""

    stack: str
    changes: tuple[Change, ...]
    id: str | None
    """Of CloudFormation's change set; None where there is nothing to carry out or only the template was read."""
    new: bool


class Stacks:
    """Stacks of one account and region.

    Args:
        client: a boto3 client of CloudFormation that does not repeat calls.
        region: another region than the configured one.
        sleep: how to wait between two looks; takes seconds.
        pause: seconds between two looks.
    """

    def __init__(
        self,
        *,
        client: Any = None,
        region: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
        pause: float = 2.0,
    ) -> None:
        self._client = client if client is not None else open_client("cloudformation", region=region)
        self._patience = Patience(DEADLINE_SECONDS, READ_SECONDS)
        self._sleep = sleep
        self._pause = pause

    @property
    def region(self) -> str:
        """The region in which the stacks are."""
        return str(self._client.meta.region_name)

    def parameters(self, stack: str) -> dict[str, str] | None:
        """Give a stack's parameters; None if there is no such stack."""
        found = self._describe(stack)
        if found is None:
            return None
        return {one["ParameterKey"]: one["ParameterValue"] for one in found.get("Parameters", [])}

    def outputs(self, stack: str) -> dict[str, str]:
        """Give a stack's outputs."""
        found = self._describe(stack) or {}
        return {one["OutputKey"]: one["OutputValue"] for one in found.get("Outputs", [])}

    def propose(
        self, stack: str, template: str, parameters: Mapping[str, str], conditions: Mapping[str, bool]
    ) -> ChangeSet:
        """Find out what a template would change.

        A stack that does not exist is read off the template: nothing is written. For one that does, CloudFormation
        makes a change set, which :meth:`discard` or :meth:`carry_out` ends.

        Args:
            stack: its name.
            template: the template's text.
            parameters: its parameters.
            conditions: the truth of those of the template's conditions on which whole resources hang.
        """
        found = self._describe(stack)
        if found is None:
            made = [
                Change("add", name, kind)
                for name, kind, condition in _RESOURCE.findall(template)
                if not condition or conditions[condition]
            ]
            return ChangeSet(stack, tuple(made), None, new=True)
        if found["StackStatus"] == "ROLLBACK_COMPLETE":
            raise UsageError(
                f"The stack {stack} could not be made, and CloudFormation changes such a stack no more.",
                why=self._reasons(stack, None),
                fix=f"Delete what is left of it: aws cloudformation delete-stack --stack-name {stack}; then repeat.",
            )
        return self._change_set(stack, template, parameters, "UPDATE")

    def discard(self, proposed: ChangeSet) -> None:
        """Take back a change set that is not carried out."""
        if proposed.id is not None:
            self._ask("DeleteChangeSet", proposed.stack, ChangeSetName=proposed.id, StackName=proposed.stack)

    def carry_out(
        self,
        proposed: ChangeSet,
        template: str,
        parameters: Mapping[str, str],
        on_event: Callable[[str, str, str], None],
    ) -> None:
        """Make or change the stack, and wait until it is done.

        Args:
            proposed: as :meth:`propose` gave it.
            template: the template's text.
            parameters: its parameters.
            on_event: told each resource's name, status and reason, as they come.

        Raises:
            BackendUnavailable: it failed; names each resource that did, with its reason.
        """
        ready = self._change_set(proposed.stack, template, parameters, "CREATE") if proposed.new else proposed
        if ready.id is None:
            return
        seen = self._events(proposed.stack)
        self._ask("ExecuteChangeSet", proposed.stack, ChangeSetName=ready.id, StackName=proposed.stack)
        until = time.monotonic() + STACK_SECONDS
        while True:
            fresh = [event for event in self._events(proposed.stack).items() if event[0] not in seen]
            for id_, event in fresh:
                seen[id_] = event
                on_event(event["LogicalResourceId"], event["ResourceStatus"], event.get("ResourceStatusReason", ""))
            status = (self._describe(proposed.stack) or {"StackStatus": "DELETE_COMPLETE"})["StackStatus"]
            if status in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
                return
            if not status.endswith("_IN_PROGRESS") and status not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
                raise BackendUnavailable(
                    f"The stack {proposed.stack} failed: {status}.",
                    why=self._reasons(proposed.stack, seen),
                    fix="Put right what the reason names, then repeat: what is made already is not made again.",
                )
            if time.monotonic() > until:
                raise BackendUnavailable(
                    f"The stack {proposed.stack} is not done after {STACK_SECONDS:g} s; it goes on: {status}.",
                    fix=f"Look at it: aws cloudformation describe-stack-events --stack-name {proposed.stack}",
                )
            self._sleep(self._pause)

    def _change_set(self, stack: str, template: str, parameters: Mapping[str, str], kind: str) -> ChangeSet:
        name = f"bundlectl-{uuid.uuid4().hex[:12]}"
        made = self._ask(
            "CreateChangeSet",
            stack,
            StackName=stack,
            ChangeSetName=name,
            ChangeSetType=kind,
            TemplateBody=template,
            Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
            Tags=[{"Key": "bundlectl", "Value": parameters["Name"]}],
            ClientToken=name,
        )
        until = time.monotonic() + STACK_SECONDS
        while True:
            found = self._ask("DescribeChangeSet", stack, ChangeSetName=made["Id"], StackName=stack)
            if found["Status"] == "CREATE_COMPLETE":
                break
            reason = found.get("StatusReason", "")
            if found["Status"] == "FAILED":
                self._ask("DeleteChangeSet", stack, ChangeSetName=made["Id"], StackName=stack)
                if "didn't contain changes" in reason or "No updates" in reason:
                    return ChangeSet(stack, (), None, new=False)
                raise BackendUnavailable(f"CloudFormation cannot change {stack}.", why=reason)
            if time.monotonic() > until:
                raise BackendUnavailable(f"CloudFormation has not compared {stack} after {STACK_SECONDS:g} s.")
            self._sleep(self._pause)
        changes = tuple(
            _change(one["ResourceChange"]) for one in found.get("Changes", []) if one.get("Type") == "Resource"
        )
        if not changes and kind == "UPDATE":
            self._ask("DeleteChangeSet", stack, ChangeSetName=made["Id"], StackName=stack)
            return ChangeSet(stack, (), None, new=False)
        return ChangeSet(stack, changes, made["Id"], new=kind == "CREATE")

    def _describe(self, stack: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._ask("DescribeStacks", stack, StackName=stack)["Stacks"][0]
        except _NoStack:
            return None
        return None if found["StackStatus"] in _UNMADE else found

    def _events(self, stack: str) -> dict[str, Any]:
        """Give a stack's events by their id, oldest first."""
        events: list[dict[str, Any]] = []
        asked: dict[str, str] = {"StackName": stack}
        while True:
            page = self._ask("DescribeStackEvents", stack, **asked)
            events += page["StackEvents"]
            if not page.get("NextToken"):
                return {event["EventId"]: event for event in reversed(events)}
            asked["NextToken"] = page["NextToken"]

    def _reasons(self, stack: str, events: Mapping[str, Any] | None) -> str:
        found = self._events(stack) if events is None else events
        failed = [
            f"{event['LogicalResourceId']} ({event['ResourceType']}): {event.get('ResourceStatusReason', 'no reason')}"
            for event in found.values()
            if event["ResourceStatus"].endswith("_FAILED")
        ]
        # What was under way beside the first failure is only cancelled: that is no reason.
        return "\n".join([line for line in failed if "cancelled" not in line] or failed)

    def _ask(self, action: str, stack: str, **arguments: Any) -> Any:
        method = re.sub(r"(?<!^)(?=[A-Z])", "_", action).lower()
        try:
            return self._patience.ask(
                lambda: getattr(self._client, method)(**arguments), self._patience.until(), write=False
            )
        except Refused as error:
            if error.failure.code == "ValidationError" and "does not exist" in error.failure.message:
                raise _NoStack(stack) from error
            said, fix = refusal(error.failure, f"cloudformation:{action}", stack)
            raise BackendUnavailable(f"{said}.", why=error.failure.why, fix=fix) from error
        except Unanswered as error:
            raise BackendUnavailable(
                f"CloudFormation did not answer {action} of {stack} within {self._patience.deadline:g} s.",
                why=error.failure.why,
                fix="Repeat: what is made already is not made again.",
            ) from error


class _NoStack(BackendUnavailable):
    """There is no such stack."""


def _change(told: Mapping[str, Any]) -> Change:
    action: Action = {"Add": "add", "Modify": "modify", "Remove": "remove"}.get(told["Action"], "modify")  # type: ignore[assignment]
    if action == "modify" and told.get("Replacement") == "True":
        action = "replace"
    return Change(action, told["LogicalResourceId"], told["ResourceType"])
