"""Kernels of the certificate tracker."""
