"""The services that score and verify what a run generates: teachers, the reference and the verifier, by URL."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from vold_trainer.config.base import KEY_FILE, Config, KeyFilePath, TemplateVariables, VariableName


class TlsConfig(Config):
    """For grpcs:// and https:// URLs."""

    ca: Path | None = Field(default=None, description="PEM file of the CA that signed the service's certificate")
    cert: Path | None = Field(
        default=None, description="PEM file of the trainer's certificate, if the service requires one"
    )
    key: Path | None = Field(default=None, description="PEM file of that certificate's key, not encrypted")


def _read_off(value: Any) -> Any:
    """YAML 1.1 reads a bare `off` as false."""
    return "off" if value is False else value


class ScoringModelConfig(Config):
    """A model behind a URL that gives log-probabilities of the student's completions."""

    url: str | list[str] = Field(description="URL of the model's service; several: replicas")
    model: str = Field(default="", description="name of the model in the service; empty: its default")
    system: str = Field(default="", description="system prompt for this model alone, before that of the row")
    template: Literal["student", "teacher"] = Field(
        default="student", description="whose chat template and tokenizer render its prompts"
    )
    chat_template_kwargs: TemplateVariables = Field(
        default={},
        description="further variables of its own chat template: for template: teacher, `vold traces`",
    )
    api_key_env: VariableName = Field(
        default="VOLD_TEACHER_API_KEY", description="environment variable with the API key"
    )
    api_key_file: KeyFilePath = Field(default=None, description=KEY_FILE)
    tls: TlsConfig = TlsConfig()
    timeout: float = Field(default=120.0, gt=0, description="seconds for one call, retries included")
    allow_identity_change: bool = Field(default=False, description="continue if the model changes during the run")
    min_shared: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="smallest share of the student's token ids that mean the same to the model",
    )


class ReferenceConfig(ScoringModelConfig):
    """The reference of objective.kl_beta as a service, in place of the student at the start of the run."""


class TeacherConfig(ScoringModelConfig):
    url: str | list[str] = Field(default="local:pocket:teacher", description="URL of the teacher; several: replicas")
    only: Literal["used"] | None = Field(
        default=None,
        description="used: score only the completions whose scores the objective uses, after their verdicts; null: "
        "every completion, while others are generated",
    )
    sane: Annotated[Literal["warn", "stop", "off"], BeforeValidator(_read_off)] = Field(
        default="stop",
        description="if its values cannot be a language model's: warn, or stop the run after 3 such steps in a row",
    )


class RoutedTeacherConfig(TeacherConfig):
    """One of several teachers. A row is scored by the teacher that its field `teacher` names; otherwise by the teacher
    that claims one of its `tags` or its `category`; otherwise by the default teacher.
    """

    tags: list[str] = Field(default_factory=list, description="tags and categories of the rows that it scores")
    default: bool = Field(default=False, description="score the rows that no other teacher claims")


class VerifierConfig(Config):
    url: str | list[str] = Field(default="local:", description="URL of the verifier; local: starts one")
    name: str = Field(default="math", description="verifier of rows that do not name one")
    parameters: dict[str, Any] = Field(default_factory=dict, description="parameters of the verifier")
    on_limit: Literal["mask", "zero"] = Field(
        default="mask",
        description="an answer that is too long, exceeds a limit of the verifier or crashes it: without a reward, and "
        "counted as missing, or with reward 0",
    )
    api_key_env: VariableName = Field(
        default="VOLD_VERIFIER_API_KEY", description="environment variable with the API key"
    )
    api_key_file: KeyFilePath = Field(default=None, description=KEY_FILE)
    tls: TlsConfig = TlsConfig()
    timeout: float = Field(default=120.0, gt=0, description="seconds for one call, retries included")
