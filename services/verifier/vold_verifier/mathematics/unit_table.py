"""The sizes and names of units, as data. `units` looks them up.

A row has the symbols, which are case-sensitive; the names in the singular; the size in base units; the dimensions; and
"si" if prefixes may stand before the symbols and the names, "large" if only those from kilo upwards may. The base units
are meter, gram, second, ampere, kelvin, mole, candela, degree (of an angle), bit, and one unit of each currency. Sizes
are exact where their definition is: BIPM, "The International System of Units", 9th edition; NIST Special Publication
811, appendix B. US customary measures. A month has no fixed length in days, so that years and months are a dimension of
their own.
"""

ROWS = """
m | meter metre | 1 | L | si
in | inch inche | 0.0254 | L |
ft | foot feet | 0.3048 | L |
yd yds | yard | 0.9144 | L |
mi | mile | 1609.344 | L |
nmi | nautical-mile | 1852 | L |
Å | angstrom ångström | 1/10000000000 | L |
AU au | astronomical-unit | 149597870700 | L |
ly | light-year lightyear | 9460730472580800 | L |
pc | parsec | 30856775814913673 | L | si
 | furlong | 201.168 | L |
 | fathom | 1.8288 | L |
ha | hectare | 10000 | L2 |
ac | acre | 316160658/78125 | L2 |
L l | liter litre | 1/1000 | L3 | si
cc | | 1/1000000 | L3 |
gal gals | gallon | 473176473/125000000000 | L3 |
qt qts | quart | 473176473/500000000000 | L3 |
pt pts | pint | 473176473/1000000000000 | L3 |
 | cup | 473176473/2000000000000 | L3 |
 | fluid-ounce | 473176473/16000000000000 | L3 |
tbsp | tablespoon | 473176473/32000000000000 | L3 |
tsp | teaspoon | 473176473/96000000000000 | L3 |
g gm gms | gram gramme | 1 | M | si
kilo kilos | | 1000 | M |
t | tonne metric-ton | 1000000 | M | si
lb lbs | pound | 453.59237 | M |
oz ozs | ounce | 45359237/1600000 | M |
 | ton short-ton | 907184.74 | M |
st | stone | 6350.29318 | M |
ct | carat | 1/5 | M |
u amu Da | dalton | 1.66053906660e-24 | M | si
s sec secs | second | 1 | T | si
min mins | minute | 60 | T |
h hr hrs | hour | 3600 | T |
d | day | 86400 | T |
wk wks | week | 604800 | T |
 | fortnight | 1209600 | T |
mo mos | month | 1 | months |
y yr yrs | year | 12 | months |
 | decade | 120 | months |
 | century centurie | 1200 | months |
Hz | hertz | 1 | T-1 | si
A | ampere amp | 1 | I | si
K | kelvin | 1 | Θ | si
mol mole | mole | 1 | N | si
M | molar | 1000 | N L-3 |
mM | millimolar | 1 | N L-3 |
µM μM uM | micromolar | 1/1000 | N L-3 |
cd | candela | 1 | J | si
lm | lumen | 1 | J | si
lx | lux | 1 | J L-2 | si
N | newton | 1000 | M L T-2 | si
dyn | dyne | 1/100 | M L T-2 |
lbf | pound-force | 4448.2216152605 | M L T-2 |
J | joule | 1000 | M L2 T-2 | si
erg | erg | 1/10000 | M L2 T-2 |
cal | calorie | 4184 | M L2 T-2 | si
eV | electronvolt electron-volt | 1.602176634e-16 | M L2 T-2 | si
Wh | watt-hour | 3600000 | M L2 T-2 | si
BTU Btu | | 1055055.85262 | M L2 T-2 |
Nm | newton-meter newton-metre | 1000 | M L2 T-2 | si
W | watt | 1000 | M L2 T-3 | si
hp | horsepower | 745699.87158227022 | M L2 T-3 |
Pa | pascal | 1000 | M L-1 T-2 | si
bar | bar | 100000000 | M L-1 T-2 | si
atm | atmosphere | 101325000 | M L-1 T-2 |
mmHg | | 101325000/760 | M L-1 T-2 |
torr Torr | torr | 101325000/760 | M L-1 T-2 |
psi | | 6894757.2931683613 | M L-1 T-2 |
C | coulomb | 1 | I T | si
Ah | ampere-hour amp-hour | 3600 | I T | si
V | volt | 1000 | M L2 T-3 I-1 | si
Ω ohm | ohm | 1000 | M L2 T-3 I-2 | si
S | siemens | 1/1000 | M-1 L-2 T3 I2 | si
F | farad | 1/1000 | M-1 L-2 T4 I2 | si
Wb | weber | 1000 | M L2 T-2 I-1 | si
T | tesla | 1000 | M T-2 I-1 | si
G | gauss | 1/10 | M T-2 I-1 |
H | henry henrie | 1000 | M L2 T-2 I-2 | si
Bq | becquerel | 1 | T-1 | si
Ci | curie | 37000000000 | T-1 | si
Gy | gray | 1 | L2 T-2 | si
Sv | sievert | 1 | L2 T-2 | si
P | poise | 100 | M L-1 T-1 |
kn kt | knot | 1852/3600 | L T-1 |
mph | | 1609.344/3600 | L T-1 |
kph kmh kmph | | 1000/3600 | L T-1 |
fps | | 0.3048 | L T-1 |
rpm | | 360/60 | A T-1 |
ppm | | 1/1000000 | parts |
ppb | | 1/1000000000 | parts |
deg ° | degree | 1 | A |
arcmin | arcminute | 1/60 | A |
arcsec | arcsecond | 1/3600 | A |
rev | revolution turn | 360 | A |
b | bit | 1 | B | large
B | byte | 8 | B | large
KB | | 8000 | B |
KiB | kibibyte | 8192 | B |
MiB | mebibyte | 8388608 | B |
GiB | gibibyte | 8589934592 | B |
$ USD usd US$ | dollar buck | 1 | dollars |
¢ | cent | 1/100 | dollars |
 | dime | 1/10 | dollars |
€ EUR eur | euro | 1 | euros |
£ GBP gbp | | 1 | sterling |
p | penny pence | 1/100 | sterling |
¥ JPY jpy | yen | 1 | yen |
₹ INR inr Rs rs | rupee | 1 | rupees |
 | paisa paise | 1/100 | rupees |
CHF | franc | 1 | francs |
 | peso | 1 | pesos |
AUD | | 1 | AUD |
CAD | | 1 | CAD |
KRW ₩ | won | 1 | won |
元 RMB CNY | yuan 人民币 块 | 1 | yuan |
角 | | 1/10 | yuan |
米 | | 1 | L |
厘米 公分 | | 1/100 | L |
毫米 | | 1/1000 | L |
分米 | | 1/10 | L |
千米 公里 | | 1000 | L |
克 | | 1 | M |
千克 公斤 | | 1000 | M |
吨 | | 1000000 | M |
升 | | 1/1000 | L3 |
毫升 | | 1/1000000 | L3 |
秒 秒钟 | | 1 | T |
分钟 | | 60 | T |
小时 | | 3600 | T |
天 日 | | 86400 | T |
周 星期 | | 604800 | T |
个月 | | 1 | months |
年 | | 12 | months |
平方米 | | 1 | L2 |
平方厘米 | | 1/10000 | L2 |
平方千米 平方公里 | | 1000000 | L2 |
立方米 | | 1 | L3 |
立方厘米 | | 1/1000000 | L3 |
度 | | 1 | A |
"""
RADIAN = ("rad", "radian")
"""A radian is 180/π degrees."""
TEMPERATURES = {"degc": ("5463/20", "1"), "degf": ("45967/180", "5/9")}
"""The zero of each scale in kelvin, and its degree in kelvins."""
PREFIXES = """
Q quetta 30, R ronna 27, Y yotta 24, Z zetta 21, E exa 18, P peta 15, T tera 12, G giga 9, M mega 6, k kilo 3,
h hecto 2, da deca 1, d deci -1, c centi -2, m milli -3, µ micro -6, μ micro -6, u micro -6, n nano -9, p pico -12,
f femto -15, a atto -18, z zepto -21, y yocto -24, r ronto -27, q quecto -30
"""
COMMON = """
mm cm dm km in ft yd mi mg kg lb oz lbs ml mL cL dL gal min mins sec hr hrs
nm pm µm μm ms ns ps mol mmol kmol eV keV MeV GeV Hz kHz MHz GHz THz hPa kPa MPa GPa Pa kJ MJ GJ kW GW kWh kcal cal atm
cup ton amp bit yen day won
mmHg ppm ppb kB KB MB GB TB bar
yr yrs mph rpm kph psi rad deg cc
USD EUR GBP JPY INR CNY RMB CHF AUD CAD KRW
"""
"""Symbols that nobody reads as a product of variables."""
