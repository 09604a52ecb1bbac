"""The post office: task folders to and from the Hugging Face Hub, and nothing else."""

from adapterhub.hub._card import model_card
from adapterhub.hub._pull import pull
from adapterhub.hub._push import push
from adapterhub.hub._urls import HubLocation, check_repo_id, parse_url

__all__ = ["HubLocation", "check_repo_id", "model_card", "parse_url", "pull", "push"]
