"""What programs that use a Sightline server import: `from sightline.client import Sightline`."""
