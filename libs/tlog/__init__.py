"""A transparency log's mathematics: RFC 6962 trees and their proofs, C2SP signed notes and checkpoints. No I/O."""
