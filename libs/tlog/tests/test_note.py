"""Notes are read and signed as C2SP says; what is not signed by whom it must be is refused in words."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tlog.note import COSIGNATURE, Checkpoint, NoteError, SignedNote, Signer, Verifier, open_checkpoint

# The example of golang.org/x/mod/sumdb/note, which made the format.
KEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
SIGNED = (
    "If you think cryptography is the answer to your problem,\n"
    "then you don't know what your problem is.\n"
    "\n"
    "— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
LOG = Signer("sightline.example/audit", Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
WITNESSES = [Signer(f"witness-{n}", Ed25519PrivateKey.from_private_bytes(bytes([n] * 32)), COSIGNATURE) for n in range(3)]
POINT = Checkpoint(LOG.verifier.name, 7, bytes(range(32)))


def note(*witnesses: Signer) -> SignedNote:
    text = str(POINT)
    return SignedNote(text, ()).signed(LOG.sign(text), *(witness.sign(text, 1_800_000_000 + n) for n, witness in enumerate(witnesses)))


# Signed notes and cosignatures, checked by Node's own cryptography and by nothing of ours.
ELSEWHERE = """
const { createHash, createPublicKey, verify } = require("node:crypto");
const [content, ...keys] = JSON.parse(require("node:fs").readFileSync(0, "utf8"));
const cut = content.lastIndexOf("\\n\\n"), text = content.slice(0, cut + 1);
const lines = content.slice(cut + 2).trimEnd().split("\\n").map((line) => line.match(/^\u2014 (\\S+) (\\S+)$/));
console.log(JSON.stringify(keys.map((key) => {
  const [name, id, ...rest] = key.split("+"), encoded = Buffer.from(rest.join("+"), "base64"), kind = encoded[0];
  const computed = createHash("sha256").update(name + "\\n").update(encoded).digest().subarray(0, 4);
  if (computed.toString("hex") !== id) return "another key id";
  const der = Buffer.concat([Buffer.from("302a300506032b6570032100", "hex"), encoded.subarray(1)]);
  const publicKey = createPublicKey({ key: der, format: "der", type: "spki" });
  const line = lines.find((each) => each[1] === name && Buffer.from(each[2], "base64").subarray(0, 4).equals(computed));
  if (!line) return "not signed";
  let signature = Buffer.from(line[2], "base64").subarray(4), signed = text;
  if (kind === 4) {
    signed = `cosignature/v1\\ntime ${signature.readBigUInt64BE(0)}\\n${text}`;
    signature = signature.subarray(8);
  }
  return verify(null, Buffer.from(signed), publicKey, signature) ? "good" : "bad";
})));
"""


def elsewhere(content: str, *keys: str) -> list[str]:
    """What another implementation says of a note's signatures, key by key."""
    node = Path(sys.executable).with_name("node")
    found = subprocess.run(  # noqa: S603 - our own script
        [node, "-e", ELSEWHERE], input=json.dumps([content, *keys]), capture_output=True, text=True, check=True
    )
    return list(json.loads(found.stdout))


def test_another_implementation_takes_what_we_sign_and_refuses_what_we_refuse() -> None:
    assert elsewhere(SIGNED, KEY) == ["good"]  # its own example: the check itself works
    keys = [str(signer.verifier) for signer in (LOG, *WITNESSES)]
    content = str(note(*WITNESSES[:2]))
    assert elsewhere(content, *keys) == ["good", "good", "good", "not signed"]
    assert elsewhere(content.replace("\n7\n", "\n8\n"), *keys) == ["bad", "bad", "bad", "not signed"]
    assert elsewhere(content, keys[1][:-4] + "AAA=") == ["another key id"]


def test_a_note_of_another_implementation_is_taken() -> None:
    key, found = Verifier.parse(KEY), SignedNote.parse(SIGNED)
    assert key.check(found) == 0
    assert (str(key), str(found)) == (KEY, SIGNED)
    with pytest.raises(NoteError, match="does not fit"):
        key.check(SignedNote.parse(SIGNED.replace("answer", "question")))


def test_a_checkpoint_is_signed_by_its_log_and_seen_by_witnesses() -> None:
    keys = [witness.verifier for witness in WITNESSES]
    found, seen = open_checkpoint(str(note(*WITNESSES[:2])), LOG.verifier, keys, quorum=2)
    assert (found, seen) == (POINT, {"witness-0": 1_800_000_000, "witness-1": 1_800_000_001})
    with pytest.raises(NoteError, match="2 witnesses saw it, not 3"):
        open_checkpoint(str(note(*WITNESSES[:2])), LOG.verifier, keys, quorum=3)
    with pytest.raises(NoteError, match="not signed by"):
        open_checkpoint(str(SignedNote(str(POINT), (WITNESSES[0].sign(str(POINT)),))), LOG.verifier)


def test_a_witness_cannot_be_made_to_have_seen_it_at_another_time() -> None:
    signed = WITNESSES[0].sign(str(POINT), 1000)
    later = type(signed)(signed.name, signed.key_id, (2000).to_bytes(8) + signed.signature[8:])
    with pytest.raises(NoteError, match="does not fit"):
        WITNESSES[0].verifier.check(note().signed(later))


def test_a_key_signs_only_what_it_is_for() -> None:
    """The same bytes as the key of a log and of a witness are two keys."""
    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    log, witness = Signer("same", key), Signer("same", key, COSIGNATURE)
    assert log.verifier.key_id != witness.verifier.key_id
    with pytest.raises(NoteError, match="not signed"):
        witness.verifier.check(SignedNote("text\n", (log.sign("text\n"),)))


def test_another_logs_checkpoint_is_refused() -> None:
    text = str(Checkpoint("another log", 7, POINT.root))
    with pytest.raises(NoteError, match="a checkpoint of another log"):
        open_checkpoint(str(SignedNote(text, (LOG.sign(text),))), LOG.verifier)


@pytest.mark.parametrize("content", [
    "", "text\n", "text\n\n", "text\n\n\n", "text\n\n— name\n", "text\n\n- name AAAAAAAA\n", "text\n\n— na+me AAAAAAAA\n",
    "text\n\n— name AAAA\n",
    "text\n\n— name AAAAAAAA", "text\n\n— name not base64!\n", "te\rxt\n\n— name AAAAAAAA\n", "x" * 70_000 + "\n\n— name AAAAAAAA\n",
    "text\n\n" + "— name AAAAAAAA\n" * 101,
])  # fmt: skip
def test_what_is_no_note_is_refused(content: str) -> None:
    with pytest.raises(NoteError):
        SignedNote.parse(content)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n1\n",
        "a\n01\nAAAA\n",
        "a\n-1\nAAAA\n",
        "\n1\nAAAA\n",
        "a\n1\nAAAA\n",
        "a\n1\n???\n",
        "a\n1\né\n",
        "a\n" + "9" * 30 + "\nAAAA\n",
    ],
)
def test_what_is_no_checkpoint_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        Checkpoint.parse(text)


@pytest.mark.parametrize("text", ["", "a", "a+b+c", KEY.replace("c74f20a3", "c74f20a4"), KEY[:-8], KEY.replace("ARpc", "CRpc")])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(NoteError):
        Verifier.parse(text)


@given(st.text(max_size=200))
def test_any_text_is_a_note_or_none(content: str) -> None:
    try:
        found = SignedNote.parse(content)
    except NoteError:
        return
    assert str(found) == content


@given(st.integers(0, len(str(note(WITNESSES[0]))) - 1), st.integers(1, 127))
def test_one_changed_character_is_found(place: int, flip: int) -> None:
    content = str(note(WITNESSES[0]))
    changed = content[:place] + chr(ord(content[place]) ^ flip) + content[place + 1 :]
    with pytest.raises(NoteError):
        open_checkpoint(changed, LOG.verifier, [WITNESSES[0].verifier], quorum=1)
