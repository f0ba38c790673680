# Vectors of 16 samples, one 64-byte line of Float32: a register with AVX-512, two with AVX2.
# The bodies are plain LLVM instructions without declarations or pointers, which every Julia from 1.5 on accepts.

const LANES = 16
const Lanes = NTuple{LANES,VecElement{Float32}}

@inline load_lanes(p::Ptr{Float32}) = unsafe_load(Ptr{Lanes}(p))
@inline store_lanes(p::Ptr{Float32}, v::Lanes) = unsafe_store!(Ptr{Lanes}(p), v)

@inline splat(x::Float32) = Base.llvmcall(
    """%2 = insertelement <16 x float> undef, float %0, i32 0
       %3 = shufflevector <16 x float> %2, <16 x float> undef, <16 x i32> zeroinitializer
       ret <16 x float> %3""", Lanes, Tuple{Float32}, x)

@inline mul(a::Lanes, b::Lanes) = Base.llvmcall(
    """%3 = fmul <16 x float> %0, %1
       ret <16 x float> %3""", Lanes, Tuple{Lanes,Lanes}, a, b)

@inline add(a::Lanes, b::Lanes) = Base.llvmcall(
    """%3 = fadd <16 x float> %0, %1
       ret <16 x float> %3""", Lanes, Tuple{Lanes,Lanes}, a, b)

# `contract` lets the back end fuse the two instructions into one multiply-add.
@inline muladd_lanes(a::Lanes, b::Lanes, c::Lanes) = Base.llvmcall(
    """%4 = fmul contract <16 x float> %0, %1
       %5 = fadd contract <16 x float> %4, %2
       ret <16 x float> %5""", Lanes, Tuple{Lanes,Lanes,Lanes}, a, b, c)

# Butterfly shuffles: `low(Val(d), a, b)` and `high(Val(d), a, b)` exchange the off-diagonal halves of width d, as one stage
# of a transposition of a 16 x 16 block held in 16 vectors.
for d in (1, 2, 4, 8)
    low = join(("i32 $((l & d) == 0 ? l : 16 + l - d)" for l in 0:15), ", ")
    high = join(("i32 $((l & d) == 0 ? l + d : 16 + l)" for l in 0:15), ", ")
    for (name, order) in ((:low, low), (:high, high))
        body = """%3 = shufflevector <16 x float> %0, <16 x float> %1, <16 x i32> <$order>
                  ret <16 x float> %3"""
        @eval @inline $name(::Val{$d}, a::Lanes, b::Lanes) =
            Base.llvmcall($body, Lanes, Tuple{Lanes,Lanes}, a, b)
    end
end

# The code of the two functions below is written out when the package is compiled, not when it is first called, as generated
# functions would be: a process's first step then does not wait for it.

"Exchanges in all pairs of rows that are d apart: one stage of a transposition."
function butterfly_code(d, rows)
    return [(i & d) == 0 ? :(low(Val($d), $(rows[i + 1]), $(rows[i + d + 1]))) :
                           :(high(Val($d), $(rows[i - d + 1]), $(rows[i + 1]))) for i in 0:15]
end

function transpose_code()
    code, rows = Expr(:block), [:(rows[$i]) for i in 1:16]
    for d in (8, 4, 2, 1)
        names = [gensym() for _ in 1:16]
        append!(code.args, [:($name = $value) for (name, value) in zip(names, butterfly_code(d, rows))])
        rows = names
    end
    push!(code.args, Expr(:tuple, rows...))
    return code
end

"Each stage adds the two halves that a transposition would exchange, so the work halves from stage to stage."
function horizontal_sums_code()
    code, rows = Expr(:block), [:(rows[$i]) for i in 1:16]
    for d in (8, 4, 2, 1)
        names = [gensym() for _ in 1:d]
        for i in 1:d
            a, b = rows[i], rows[i + d]
            push!(code.args, :($(names[i]) = add(low(Val($d), $a, $b), high(Val($d), $a, $b))))
        end
        rows = names
    end
    push!(code.args, rows[1])
    return code
end

@eval begin
    "Transposes the 16 x 16 block whose row r is `rows[r]`."
    @inline transpose16(rows::NTuple{16,Lanes}) = $(transpose_code())

    "The 16 horizontal sums of 16 vectors, as one vector: lane l holds the sum of `rows[l]`."
    @inline horizontal_sums(rows::NTuple{16,Lanes}) = $(horizontal_sums_code())
end

@inline function horizontal_sum(v::Lanes)
    w = add(v, high(Val(8), v, v))
    w = add(w, high(Val(4), w, w))
    w = add(w, high(Val(2), w, w))
    w = add(w, high(Val(1), w, w))
    return w[1].value
end

@inline max_lanes(a::Lanes, b::Lanes) = Base.llvmcall(
    """%3 = fcmp ogt <16 x float> %0, %1
       %4 = select <16 x i1> %3, <16 x float> %0, <16 x float> %1
       ret <16 x float> %4""", Lanes, Tuple{Lanes,Lanes}, a, b)

@inline min_lanes(a::Lanes, b::Lanes) = Base.llvmcall(
    """%3 = fcmp olt <16 x float> %0, %1
       %4 = select <16 x i1> %3, <16 x float> %0, <16 x float> %1
       ret <16 x float> %4""", Lanes, Tuple{Lanes,Lanes}, a, b)

"The smaller one of `a` and what of `b` is above 0."
@inline min_above_zero(a::Lanes, b::Lanes) = Base.llvmcall(
    """%3 = fcmp olt <16 x float> %1, %0
       %4 = fcmp ogt <16 x float> %1, zeroinitializer
       %5 = and <16 x i1> %3, %4
       %6 = select <16 x i1> %5, <16 x float> %1, <16 x float> %0
       ret <16 x float> %6""", Lanes, Tuple{Lanes,Lanes}, a, b)

"Whether a < b in any lane."
@inline any_less(a::Lanes, b::Lanes) = Base.llvmcall(
    """%3 = fcmp olt <16 x float> %0, %1
       %4 = bitcast <16 x i1> %3 to i16
       ret i16 %4""", Int16, Tuple{Lanes,Lanes}, a, b) != 0

"Every lane with this constant, as LLVM writes it: a float has the bits of its double."
every_lane(x::Float64) = "<" * join(fill("float 0x$(string(reinterpret(UInt64, x), base=16))", LANES), ", ") * ">"

# Where a * b, given as `product`, underflowed: the smaller factor, which is above 0 there; elsewhere 0.
const UNDERFLOW = """%4 = fcmp olt <16 x float> %0, $(every_lane(2.0^-126))
                     %5 = fcmp olt <16 x float> %1, %2
                     %6 = select <16 x i1> %5, <16 x float> %1, <16 x float> %2
                     %7 = select <16 x i1> %4, <16 x float> %6, <16 x float> zeroinitializer
                     ret <16 x float> %7"""
@eval @inline underflow(product::Lanes, a::Lanes, b::Lanes) =
    Base.llvmcall($UNDERFLOW, Lanes, Tuple{Lanes,Lanes,Lanes}, product, a, b)

# a / b where b is at least 2^-100, else 0: smaller values are noise beside a group's largest, and their reciprocals overflow.
const SMALLEST_DIVISOR = 2.0^-100
const RATIO = """%3 = fcmp oge <16 x float> %1, $(every_lane(SMALLEST_DIVISOR))
                 %4 = fdiv <16 x float> %0, %1
                 %5 = select <16 x i1> %3, <16 x float> %4, <16 x float> zeroinitializer
                 ret <16 x float> %5"""
@eval @inline ratio(a::Lanes, b::Lanes) = Base.llvmcall($RATIO, Lanes, Tuple{Lanes,Lanes}, a, b)

# Exponents of 16 samples.
const IntLanes = NTuple{LANES,VecElement{Int32}}

@inline splat(x::Int32) = ntuple(_ -> VecElement(x), Val(LANES))

@inline load_lanes(p::Ptr{Int32}) = unsafe_load(Ptr{IntLanes}(p))
@inline store_lanes(p::Ptr{Int32}, v::IntLanes) = unsafe_store!(Ptr{IntLanes}(p), v)

@inline add(a::IntLanes, b::IntLanes) = Base.llvmcall(
    """%3 = add <16 x i32> %0, %1
       ret <16 x i32> %3""", IntLanes, Tuple{IntLanes,IntLanes}, a, b)

@inline negate(a::IntLanes) = Base.llvmcall(
    """%2 = sub <16 x i32> zeroinitializer, %0
       ret <16 x i32> %2""", IntLanes, Tuple{IntLanes}, a)

@inline max_lanes(a::IntLanes, b::IntLanes) = Base.llvmcall(
    """%3 = icmp sgt <16 x i32> %0, %1
       %4 = select <16 x i1> %3, <16 x i32> %0, <16 x i32> %1
       ret <16 x i32> %4""", IntLanes, Tuple{IntLanes,IntLanes}, a, b)

every_lane(x::Integer) = "<" * join(fill("i32 $x", LANES), ", ") * ">"

# The exponent of a sample whose values are all zero: below any real one, so that it never sets a common scale, and small
# enough to be added up over thousands of groups.
const EXPONENT_OF_ZERO = Int32(-2^18)

# The exponent field after adding a `carry`, less its bias; of 0, `EXPONENT_OF_ZERO`.
exponent_code(carry) = """%2 = bitcast <16 x float> %0 to <16 x i32>
                          %3 = add <16 x i32> %2, $(every_lane(carry))
                          %4 = lshr <16 x i32> %3, $(every_lane(23))
                          %5 = sub <16 x i32> %4, $(every_lane(127))
                          %6 = icmp eq <16 x i32> %2, zeroinitializer
                          %7 = select <16 x i1> %6, <16 x i32> $(every_lane(EXPONENT_OF_ZERO)), <16 x i32> %5
                          ret <16 x i32> %7"""

# log2 rounded to the nearest integer: mantissas above sqrt(2) carry over.
const EXPONENT = exponent_code(0x3f800000 - 0x3f3504f3)
@eval @inline exponent_lanes(a::Lanes) = Base.llvmcall($EXPONENT, IntLanes, Tuple{Lanes}, a)

# 2^e, held within the normal numbers; 0 below them.
const POWER = """%2 = icmp slt <16 x i32> %0, $(every_lane(-126))
                 %3 = icmp sgt <16 x i32> %0, $(every_lane(127))
                 %4 = select <16 x i1> %3, <16 x i32> $(every_lane(127)), <16 x i32> %0
                 %5 = add <16 x i32> %4, $(every_lane(127))
                 %6 = shl <16 x i32> %5, $(every_lane(23))
                 %7 = select <16 x i1> %2, <16 x i32> zeroinitializer, <16 x i32> %6
                 %8 = bitcast <16 x i32> %7 to <16 x float>
                 ret <16 x float> %8"""
@eval @inline power_of_two(e::IntLanes) = Base.llvmcall($POWER, Lanes, Tuple{IntLanes}, e)
