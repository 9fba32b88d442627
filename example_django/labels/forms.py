from __future__ import annotations

from django import forms
from django.contrib.auth.forms import UserCreationForm

from .models import Label, Membership


class SignUpForm(UserCreationForm):
    team = forms.CharField(max_length=100, required=False, help_text="Leave it empty to be invited by one.")


class MemberForm(forms.Form):
    username = forms.CharField(max_length=150)
    role = forms.ChoiceField(choices=Membership.Role.choices)


class LabelForm(forms.ModelForm):
    class Meta:
        model = Label
        fields = ("address",)
