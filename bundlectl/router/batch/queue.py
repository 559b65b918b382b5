"""The queue that names rows to workers: Amazon SQS, through boto3, in threads.

A message that was received is nobody else's until its time is up; whoever works on it moves that time on. One that
was received as often as the queue's redrive policy says goes to the dead-letter queue that the policy names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

from bundlectl.model.batch import QueueState
from bundlectl.model.errors import BackendUnavailable
from bundlectl.storage.aws import DEADLINE_SECONDS, READ_SECONDS, GivenUp, Lost, Patience, Refused, open_client

T = TypeVar("T")

AT_ONCE: Final = 10
"""What one call of SQS may hold."""
_REGION: Final = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com(\.cn)?/")
_COUNTS: Final = ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesDelayed")
_IN_FLIGHT: Final = "ApproximateNumberOfMessagesNotVisible"


@dataclass(frozen=True, slots=True)
class Message:
    """A message as it was received. ``handle`` is how SQS knows this receipt; ``receives`` counts them, from 1."""

    body: str
    handle: str
    receives: int


class Queue:
    """One SQS queue. Threads may share it."""

    def __init__(self, url: str, client: Any) -> None:
        """Take the queue's URL and a boto3 client that does not repeat calls."""
        self.url = url
        self._client = client
        self._patience = Patience(DEADLINE_SECONDS, READ_SECONDS)
        self._dead: Queue | None = None
        self._asked_dead = False

    def send(self, bodies: Sequence[str], *, delay: int = 0) -> None:
        """Send messages, to be received after ``delay`` seconds. One may arrive twice."""
        for start in range(0, len(bodies), AT_ONCE):
            left = [
                {"Id": str(n), "MessageBody": body, "DelaySeconds": delay}
                for n, body in enumerate(bodies[start : start + AT_ONCE])
            ]
            while left:
                send = partial(self._client.send_message_batch, QueueUrl=self.url, Entries=left)
                reply: dict[str, Any] = self._ask(send, "sqs:SendMessage")
                failed = {one["Id"]: one for one in reply.get("Failed", ())}
                lasting = next((one for one in failed.values() if one.get("SenderFault")), None)
                if lasting is not None:
                    raise self._unavailable("sqs:SendMessage", str(lasting.get("Code", "")))
                left = [entry for entry in left if entry["Id"] in failed]

    def receive(self, count: int, *, wait: int, visibility: float) -> list[Message]:
        """Receive up to ``count`` messages (at most ten), waiting up to ``wait`` seconds for the first."""
        reply = self._ask(
            lambda: self._client.receive_message(
                QueueUrl=self.url,
                MaxNumberOfMessages=min(count, AT_ONCE),
                WaitTimeSeconds=wait,
                VisibilityTimeout=max(1, int(visibility)),
                # Two names of one thing: services know the newer, stand-ins the older.
                AttributeNames=["ApproximateReceiveCount"],
            ),
            "sqs:ReceiveMessage",
        )
        return [
            Message(one["Body"], one["ReceiptHandle"], int(one.get("Attributes", {}).get("ApproximateReceiveCount", 1)))
            for one in reply.get("Messages", ())
        ]

    def keep(self, messages: Sequence[Message], seconds: float) -> None:
        """Keep messages from others for as long from now. Those whose time was up already are not ours any more."""
        for start in range(0, len(messages), AT_ONCE):
            entries = [
                {"Id": str(n), "ReceiptHandle": message.handle, "VisibilityTimeout": int(seconds)}
                for n, message in enumerate(messages[start : start + AT_ONCE])
            ]
            keep = partial(self._client.change_message_visibility_batch, QueueUrl=self.url, Entries=entries)
            self._ask(keep, "sqs:ChangeMessageVisibility")

    def delete(self, message: Message) -> None:
        """Delete a message."""
        self._ask(
            lambda: self._client.delete_message(QueueUrl=self.url, ReceiptHandle=message.handle), "sqs:DeleteMessage"
        )

    def state(self) -> QueueState:
        """Say what it holds, roughly."""
        found = self._attributes(*_COUNTS, _IN_FLIGHT)
        dead = self.dead
        counted = None
        if dead is not None:
            held = dead._attributes(*_COUNTS, _IN_FLIGHT)
            counted = sum(int(held.get(name, 0)) for name in (*_COUNTS, _IN_FLIGHT))
        return QueueState(
            visible=sum(int(found.get(name, 0)) for name in _COUNTS),
            in_flight=int(found.get(_IN_FLIGHT, 0)),
            dead_letters=counted,
        )

    @property
    def dead(self) -> Queue | None:
        """The dead-letter queue of its redrive policy, if it has one."""
        if not self._asked_dead:
            policy = self._attributes("RedrivePolicy").get("RedrivePolicy")
            if policy:
                arn = str(json.loads(policy)["deadLetterTargetArn"])
                owner, name = arn.split(":")[-2:]
                reply = self._ask(
                    lambda: self._client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=owner),
                    "sqs:GetQueueUrl",
                )
                self._dead = Queue(reply["QueueUrl"], self._client)
            self._asked_dead = True
        return self._dead

    def _attributes(self, *names: str) -> dict[str, str]:
        reply = self._ask(
            lambda: self._client.get_queue_attributes(QueueUrl=self.url, AttributeNames=list(names)),
            "sqs:GetQueueAttributes",
        )
        found: dict[str, str] = reply.get("Attributes", {})
        return found

    def _ask(self, call: Callable[[], T], action: str) -> T:
        """Call; everything here may be repeated: what is done twice is as if it were done once."""
        try:
            return self._patience.ask(call, self._patience.until(), write=False)
        except (Refused, Lost, GivenUp) as error:
            raise self._unavailable(action, error.failure.why) from error

    def _unavailable(self, action: str, why: str) -> BackendUnavailable:
        return BackendUnavailable(
            f"The queue {self.url} cannot be used.",
            why=f"{action}: {why}",
            fix="Check the queue's URL and region, and that this process may use it.",
        )


def open_queue(uri: str) -> Queue:
    """Open the queue that ``sqs:URL`` names.

    Raises:
        UsageError: the AWS configuration cannot be used.
    """
    url = uri.removeprefix("sqs:")
    region = _REGION.match(url)
    return Queue(url, open_client("sqs", read=READ_SECONDS, region=region[1] if region else None))
