"""``{% load tier %}``: what a page shows by plan. However many tags it has, the engine is asked once per request."""

from __future__ import annotations

from typing import Any, Final

from django import template
from django.template.base import FilterExpression, NodeList, Parser, Token

from ... import drive
from ...core import GLANCE_SECONDS
from ...errors import ConfigurationError
from ...gate import Allowance, allowance
from ...names import checked_feature
from ...ops import Usage
from ..asking import asked

__all__ = ["register"]

ATTRIBUTE: Final = "_tier_allowance"

register: Final = template.Library()


@register.simple_tag(takes_context=True)
def usage(context: Any, feature: str) -> Usage:
    """``{% usage "feature:x" as u %}``: ``u.used, u.limit, u.remaining, u.resets_at``; ``limit`` None is unlimited."""
    return _allowance(context).usage_of(checked_feature(feature))


@register.tag
def feature(parser: Parser, token: Token) -> FeatureNode:
    """``{% feature "feature:x" %}...{% else %}...{% endfeature %}``: whether the org's plan has it, used up or not."""
    words = token.split_contents()
    if len(words) != 2:
        raise template.TemplateSyntaxError(f'{words[0]} takes one feature, as in {{% feature "feature:x" %}}')
    inside = parser.parse(("else", "endfeature"))
    otherwise = NodeList()
    if parser.next_token().contents == "else":
        otherwise = parser.parse(("endfeature",))
        parser.delete_first_token()
    return FeatureNode(parser.compile_filter(words[1]), inside, otherwise)


class FeatureNode(template.Node):
    child_nodelists = ("inside", "otherwise")

    def __init__(self, name: FilterExpression, inside: NodeList, otherwise: NodeList) -> None:
        self.name = name
        self.inside = inside
        self.otherwise = otherwise

    def render(self, context: Any) -> Any:
        limit = _allowance(context).usage_of(checked_feature(self.name.resolve(context))).limit
        return (self.otherwise if limit == 0 else self.inside).render(context)


def _allowance(context: Any) -> Allowance:
    request = context.get("request")
    if not hasattr(request, "tier"):
        raise ConfigurationError(
            "{% load tier %}: the template has no request with a tier; render it with the request, the context "
            "processor 'django.template.context_processors.request', and TierMiddleware in MIDDLEWARE"
        )
    found: Allowance | None = getattr(request, ATTRIBUTE, None)
    if found is None:
        core = request.tier.core
        if not core.is_open:
            core.ensure_open()
        # templates are rendered on the event loop, too: readers do not wait for writers
        found = drive.run(asked(allowance(request.tier, request)), core.engine, min(core.timeout, GLANCE_SECONDS))
        setattr(request, ATTRIBUTE, found)
    return found
