"""What the web site's mails say."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import EmailMessage

SENDER = "The demo <site@demo.example>"


@dataclass(frozen=True, slots=True)
class Letter:
    """One mail before it has an id."""

    to: str
    subject: str
    text: str

    def message(self, message_id: str) -> EmailMessage:
        """The letter as a mail. Raises ValueError for an address that would break out of its header."""
        message = EmailMessage()
        message["Message-ID"] = message_id
        message["From"] = SENDER
        message["To"] = self.to
        message["Subject"] = self.subject
        message.set_content(self.text)
        return message


def verification(to: str, link: str) -> Letter:
    """Proves that the address is theirs."""
    return Letter(to, "Please verify your address", f"Hello,\n\nfollow this link to finish signing up:\n\n{link}\n")


def welcome(to: str, address: str) -> Letter:
    """Greets whoever followed the link."""
    return Letter(to, "Welcome", f"Hello,\n\nyour address is verified. The site is here:\n\n{address}\n")


def reset_code(to: str, code: str, lasts: float) -> Letter:
    """Lets them choose a new password."""
    text = f"Hello,\n\nyour code for a new password is {code}\n\nIt is good for {lasts / 60:g} minutes, once.\n"
    return Letter(to, "Your one-time code", text)
