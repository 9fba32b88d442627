"""The JSON API: labels one by one or in batches, and the team's usage."""

from __future__ import annotations

from typing import Any

from rest_framework import mixins, serializers, status
from rest_framework.decorators import action
from rest_framework.exceptions import APIException, ValidationError
from rest_framework.permissions import IsAuthenticated
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from tier_middleware import OrgNotFound
from tier_middleware.django import sync_tier
from tier_middleware.django.drf import HasFeature

from . import carrier
from .models import Label
from .teams import team_of


class CarrierDown(APIException):
    status_code = status.HTTP_502_BAD_GATEWAY
    default_detail = "The parcel service does not answer; try again later."


class LabelSerializer(serializers.ModelSerializer):
    class Meta:
        model = Label
        fields = ("id", "address", "bought_at")


def batch_size(request: Any) -> int:
    """What is asked for: as many labels as the request has addresses. What is no list is a 400."""
    return len(request.data) if isinstance(request.data, list) else 0


class LabelViewSet(mixins.ListModelMixin, mixins.CreateModelMixin, GenericViewSet):
    serializer_class = LabelSerializer
    permission_classes = (
        IsAuthenticated,
        HasFeature("feature:labels", actions=["create"]),
        HasFeature("feature:labels", batch_size, actions=["batch"]),
    )

    def get_queryset(self) -> Any:
        team = team_of(self.request.user)
        return Label.objects.none() if team is None else team.labels.order_by("pk")

    def perform_create(self, serializer: Any) -> None:
        rows = serializer.validated_data if isinstance(serializer.validated_data, list) else [serializer.validated_data]
        try:
            for row in rows:
                carrier.register(row["address"])
        except carrier.CarrierDown as error:
            raise CarrierDown from error
        serializer.save(team=team_of(self.request.user))

    @action(detail=False, methods=["post"])
    def batch(self, request: Any) -> Response:
        """All labels or none."""
        if not isinstance(request.data, list):
            raise ValidationError("a list of labels is expected")
        serializer = self.get_serializer(data=request.data, many=True)
        serializer.is_valid(raise_exception=True)
        self.perform_create(serializer)
        return Response(serializer.data, status=201)


class Usage(APIView):
    def get(self, request: Any) -> Response:
        team = team_of(request.user)
        if team is None:
            raise ValidationError("you are in no team")
        try:
            usage = sync_tier.lookup_limits(team.org).usage
        except OrgNotFound:  # it has used nothing yet
            usage = ()
        numbers = [{"feature": one.feature, "used": one.used, "limit": one.limit} for one in usage]
        return Response({"org": team.org, "usage": numbers})
